"""The state of the search for one question: its partial solutions, which of their continuations are chosen, and the
tokens and scores that it cost."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...rollouts.sampling.base import derived_seed
from ...steps import split_steps
from .particles import effective_sample_size, log_mean_exp, systematic_resample, tilted_probabilities


@dataclass(frozen=True)
class GuidedSolution:
    """
    A solution that a search kept.

    `text` is the solution and `steps` its steps with their delimiters. `step_scores` has one score per step, except
    for a last step that was still being written when the search ended, and `value` is their aggregate, 0 without
    steps. `log_weight` is the log of its share among the question's solutions. `finished` says whether the policy
    ended it; `reason` is `"finished"`, `"length"` (a step reached the sampler's `max_new_tokens`, or the solution
    `max_tokens`) or why the search ended before. `num_tokens` are its own tokens.
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
    What a search found for a question.

    `solutions` are sorted: finished ones first, then by value, so the first is the answer. `tokens_generated` counts
    every token that the policy wrote, those of discarded proposals included; `steps_scored` the prefixes that were
    scored, each for its last step. `log_normalizer` is the particles' estimate of `log E exp(eta V)` under the policy
    (its exponential is unbiased), `None` for other methods. `reason` is `"finished"` if every solution ended by itself
    or by its length, or `"max_steps"`, `"token_budget"` or `"score_budget"`.
    """

    question: str
    solutions: list[GuidedSolution]
    tokens_generated: int
    steps_scored: int
    log_normalizer: float | None
    reason: str


class Node(NamedTuple):
    """A solution in the making. `reason` says why it is not continued, and `token_ids` are its sampled tokens, `None`
    if the sampler does not know them."""

    text: str = ""
    scores: tuple[float, ...] = ()
    value: float = 0.0
    num_tokens: int = 0
    reason: str | None = None
    token_ids: tuple[int, ...] | None = ()

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Higher is better: texts that were cut off, and texts without a step, come last."""
        return self.reason in (None, "finished"), bool(self.scores), self.value


class QuestionSearch:
    """The search for one question: its solutions so far and what they cost."""

    def __init__(self, question: str, width: int, seed: int):
        self.question, self.width, self.seed = question, width, seed
        self.nodes = [Node()] * width
        self.log_weights = np.zeros(width)
        # By steps: their scores and the value. Nothing is known before the first step, and its value cancels anyway.
        self.scored: dict[tuple[str, ...], tuple[tuple[float, ...], float]] = {(): ((), 0.0)}
        self.tokens_generated = 0
        self.reason: str | None = None

    @property
    def steps_scored(self) -> int:
        """Prefixes that the scorer has seen."""
        return len(self.scored) - 1

    @property
    def frontier(self) -> list[int]:
        """The nodes that go on."""
        return [] if self.reason else [i for i, node in enumerate(self.nodes) if node.reason is None]

    def check_budgets(self, expansions: int, token_budget: int | None, score_budget: int | None) -> None:
        """Ends the search where the next round is beyond a budget."""
        if not self.frontier:
            return
        if token_budget is not None and self.tokens_generated >= token_budget:
            self.reason = "token_budget"
        elif score_budget is not None and self.steps_scored + len(self.frontier) * expansions > score_budget:
            self.reason = "score_budget"

    def advance(
        self, proposed: list[list[Node]], method: str, eta: float | None, threshold: float, depth: int
    ) -> None:
        """Replaces each node by what is chosen of its children; a node that had ended is its only child."""
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
            # Once all have ended the weights say more than copies of the solutions would.
            if self.frontier and effective_sample_size(self.log_weights) < threshold * self.width:
                chosen = systematic_resample(self.log_weights, rng.random())
                self.nodes = [new[index] for index in chosen]
                self.log_weights = np.full(self.width, log_mean_exp(self.log_weights))

    def result(self, method: str, splitter: str, steps_of: str = "both") -> GuidedResult:
        """What was found."""
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
