"""The search for one question: its partial solutions, the selection among their continuations, and its budgets."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...rollouts.sampling.base import derived_seed
from ...steps import split_steps
from .particles import effective_sample_size, log_mean_exp, systematic_resample, tilted_probabilities


@dataclass(frozen=True)
class GuidedSolution:
    """
    A solution of a search.

    Attributes:
        text (`str`):
            The solution.
        steps (`list[str]`):
            The steps of the solution, with their delimiters.
        step_scores (`list[float]`):
            One score per step. The last step has no score if the search ended before the step did.
        value (`float`):
            Aggregate of the step scores, 0 without steps.
        log_weight (`float`):
            Log of the solution's normalised weight among the question's solutions.
        num_tokens (`int`):
            Number of tokens of the solution.
        finished (`bool`):
            Whether the policy finished the solution.
        reason (`str`):
            `"finished"`, `"length"` (a step reached the sampler's `max_new_tokens`, or the solution `max_tokens`), or
            the reason why the search ended.
    """

    text: str
    steps: list[str]
    step_scores: list[float]
    value: float
    log_weight: float
    num_tokens: int
    finished: bool
    reason: str


@dataclass(frozen=True)
class GuidedResult:
    """
    The result of a search for a question.

    Attributes:
        question (`str`):
            The question.
        solutions (`list[GuidedSolution]`):
            The solutions, finished ones first, and then by descending value. The first is the answer.
        tokens_generated (`int`):
            Number of tokens that the policy generated, including discarded proposals.
        steps_scored (`int`):
            Number of scored prefixes.
        log_normalizer (`float` or `None`):
            The particles' estimate of `log E exp(eta V)` under the policy. Its exponential is unbiased. `None` for
            other methods.
        reason (`str`):
            `"finished"` if every solution was finished or reached its maximum length, else `"max_steps"`,
            `"token_budget"` or `"score_budget"`.
    """

    question: str
    solutions: list[GuidedSolution]
    tokens_generated: int
    steps_scored: int
    log_normalizer: float | None
    reason: str


class Node(NamedTuple):
    """A partial solution. `reason` is the reason why it is not continued, or `None`. `token_ids` are its sampled
    tokens, or `None` if the sampler does not return them."""

    text: str = ""
    scores: tuple[float, ...] = ()
    value: float = 0.0
    num_tokens: int = 0
    reason: str | None = None
    token_ids: tuple[int, ...] | None = ()

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Sort key, where higher is better. Truncated texts and texts without a step come last."""
        return self.reason in (None, "finished"), bool(self.scores), self.value


class QuestionSearch:
    """The search for one question, with `width` partial solutions."""

    def __init__(self, question: str, width: int, seed: int):
        self.question, self.width, self.seed = question, width, seed
        self.nodes = [Node()] * width
        self.log_weights = np.zeros(width)
        # Step scores and value, by steps and whether they are scored as a finished solution. The empty prefix has
        # value 0, which cancels in the particles' weights.
        self.scored: dict[tuple[tuple[str, ...], bool], tuple[tuple[float, ...], float]] = {
            ((), is_finished): ((), 0.0) for is_finished in (True, False)
        }
        self.tokens_generated = 0
        self.reason: str | None = None

    @property
    def steps_scored(self) -> int:
        """Number of scored prefixes."""
        return len(self.scored) - 2

    @property
    def frontier(self) -> list[int]:
        """Indices of the nodes to continue."""
        return [] if self.reason else [i for i, node in enumerate(self.nodes) if node.reason is None]

    def check_budgets(self, expansions: int, token_budget: int | None, score_budget: int | None) -> None:
        """Ends the search if the next round would exceed a budget."""
        if not self.frontier:
            return
        if token_budget is not None and self.tokens_generated >= token_budget:
            self.reason = "token_budget"
        elif score_budget is not None and self.steps_scored + len(self.frontier) * expansions > score_budget:
            self.reason = "score_budget"

    def advance(
        self, proposed: list[list[Node]], method: str, eta: float | None, threshold: float, depth: int
    ) -> None:
        """Replaces the nodes by a selection of their children. A node that has ended is its own only child."""
        rng = np.random.default_rng(derived_seed(self.seed, depth))
        if method == "beam":
            distinct = {node.text: node for siblings in proposed for node in siblings}
            self.nodes = sorted(distinct.values(), key=lambda node: node.rank, reverse=True)[: self.width]
        elif method == "resample":
            chances = [tilted_probabilities([node.value for node in siblings], eta) for siblings in proposed]
            self.nodes = [
                siblings[rng.choice(len(siblings), p=p)] for siblings, p in zip(proposed, chances, strict=True)
            ]
        else:
            new = [node for (node,) in proposed]
            self.log_weights += eta * np.array([b.value - a.value for a, b in zip(self.nodes, new, strict=True)])
            self.nodes = new
            # Solutions that have all ended keep their weights, because resampling would only add noise.
            if self.frontier and effective_sample_size(self.log_weights) < threshold * self.width:
                chosen = systematic_resample(self.log_weights, rng.random())
                self.nodes = [new[index] for index in chosen]
                self.log_weights = np.full(self.width, log_mean_exp(self.log_weights))

    def result(self, method: str, splitter: str, steps_of: str = "both") -> GuidedResult:
        """Returns the result of the search."""
        reason = self.reason or ("max_steps" if self.frontier else "finished")
        shares = np.log(tilted_probabilities(self.log_weights[: len(self.nodes)], 1.0))
        solutions = [
            GuidedSolution(
                node.text,
                split_steps(node.text, splitter, steps_of),
                list(node.scores),
                node.value,
                float(share),
                node.num_tokens,
                node.reason == "finished",
                node.reason or reason,
            )
            for node, share in zip(self.nodes, shares, strict=True)
        ]
        solutions.sort(
            key=lambda solution: (solution.finished, bool(solution.step_scores), solution.value), reverse=True
        )
        normalizer = log_mean_exp(self.log_weights) if method == "particles" else None
        return GuidedResult(self.question, solutions, self.tokens_generated, self.steps_scored, normalizer, reason)
