"""Guided search: the policy proposes next steps, and step scores select the prefixes to continue. The policy is not
trained."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ...functional.aggregation import AGGREGATIONS, aggregate
from ...io.progress_bars import progress_bar
from ...io.text_lists import check_texts
from ...reward_model import scoring
from ...reward_model.scoring.backend import ScoringBackend
from ...reward_model.scoring.eta import eta_or_as_trained
from ...rollouts.sampling.base import Completion, Prompt, Sampler, derived_seed, holds_stop, stop_strings
from ...steps import closed_steps, split_steps, step_stops
from .question_search import GuidedResult, Node, QuestionSearch


METHODS = ("beam", "resample", "particles")
MAX_LINES = 32  # maximum number of lines per step of "whole_lines", as a policy may write blank lines forever


class Scorer(Protocol):
    """
    Protocol of a reward model for guided search, such as [`~erprm_trl.reward_model.StepScorer`].
    """

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns one score per step of each solution."""


def guided_search(
    questions: Sequence[str],
    sampler: Sampler,
    scorer: Scorer | ScoringBackend,
    *,
    method: str = "particles",
    eta: float | None = None,
    width: int = 8,
    expansions: int | None = None,
    ess_threshold: float = 0.5,
    aggregation: str = "last",
    splitter: str | None = None,
    stop: str | Sequence[str] | None = None,
    max_steps: int = 64,
    max_tokens: int | None = None,
    token_budget: int | None = None,
    score_budget: int | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> list[GuidedResult]:
    r"""
    Writes solutions step by step, guided by the values \\( V \\) of their prefixes.

    The optimal policy for a reward with KL coefficient \\( 1/\eta \\) is \\( \pi^* \propto \pi_0 \exp(\eta r) \\), and
    its next step is distributed as \\( \pi_0 \exp(\eta V(\text{prefix + step})) \\) (Q#, arXiv 2502.20548). The last
    step score of a reward model, read at `eta`, estimates this V.

    | method | each round |
    |---|---|
    | `"beam"` | proposes `expansions` steps for each of `width` beams, and keeps the `width` best distinct texts |
    | `"resample"` | proposes `expansions` steps for each of `width` chains, and draws one by softmax(eta V) |
    | `"particles"` | extends `width` particles, weights them by exp(eta (V after - V before)), and resamples them |

    Beams maximise the value. Chains are independent samples, whose distribution converges to \\( \pi^* \\) as
    `expansions` grows. Particles are a weighted sample, whose distribution converges to
    \\( \pi_0 \exp(\eta V_\text{end}) / Z \\) as `width` grows, for any values of intermediate steps.

    All questions are searched together, with one call of the sampler and one call of the scorer per round. A
    question's random choices depend only on the seed and the question. Its samples depend on other questions only if
    the sampler's do. Budgets apply to each question, and are checked between rounds.

    Args:
        questions (`Sequence[str]`):
            Questions to solve.
        sampler ([`~erprm_trl.rollouts.Sampler`]):
            The policy. Its `max_new_tokens` limits the length of a step.
        scorer ([`~erprm_trl.reward_model.StepScorer`] or [`~erprm_trl.reward_model.ScoringBackend`]):
            The reward model, or any object with a method `score` like [`StepScorer.score`].
        method (`str`, *optional*, defaults to `"particles"`):
            Search method: `"beam"`, `"resample"` or `"particles"`.
        eta (`float`, *optional*):
            Inverse reward temperature. It is required, except for `"beam"`, which does not use it. `inf` chooses
            greedily and is only possible with `"resample"`. The scores of a reward model are read at this eta if the
            eta of its labels is finite and recorded in its format. Otherwise they are used as they are, and a warning
            is logged.
        width (`int`, *optional*, defaults to `8`):
            Number of beams, chains or particles per question.
        expansions (`int`, *optional*):
            Number of proposed steps per beam or chain. Defaults to 4. Particles always have 1.
        ess_threshold (`float`, *optional*, defaults to `0.5`):
            Fraction of `width` in [0, 1]. Particles are resampled when their effective sample size is below it.
        aggregation (`str`, *optional*, defaults to `"last"`):
            Aggregation from the step scores of a prefix to its value ([`~erprm_trl.functional.aggregate`]). Only
            `"last"` estimates V.
        splitter (`str`, *optional*):
            How texts are split into steps ([`~erprm_trl.rollouts.split_steps`]). Defaults to the scorer's format. With
            `"whole_lines"`, the end of a step is only known after the next line is written.
        stop (`str` or `Sequence[str]`, *optional*):
            Strings that finish a solution. The solution ends before the string, as in
            [`~erprm_trl.rollouts.collect_rollouts`].
        max_steps (`int`, *optional*, defaults to `64`):
            Maximum number of rounds. Each round adds one step.
        max_tokens (`int`, *optional*):
            Maximum number of tokens per solution. A solution with this many tokens is not continued.
        token_budget (`int`, *optional*):
            Number of generated tokens after which the search for a question ends. The last round may exceed it.
        score_budget (`int`, *optional*):
            Maximum number of scored steps per question. The search for a question ends before a round that could
            exceed it.
        seed (`int`, *optional*, defaults to `0`):
            Random seed. Results are reproducible if the sampler is.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar with the finished questions.

    Returns:
        `list[GuidedResult]`: one result per question.

    Raises:
        `ValueError`: for invalid arguments, or a score that is not finite.
        `TypeError`: if `questions` is not a list of strings.

    Example:

    ```python
    >>> results = guided_search(questions, sampler, scorer, method="particles", eta=2.0, width=16)
    >>> results[0].solutions[0].text
    ```
    """
    check_texts("questions", questions)
    expansions = _check_arguments(method, eta, width, expansions, ess_threshold, aggregation)
    _check_limits(max_steps=max_steps, max_tokens=max_tokens, token_budget=token_budget, score_budget=score_budget)
    scorer, unfinished_scorer = _scorers(scorer, eta)
    splitter, steps_of = _splitter(splitter, scorer)
    stops, until = step_stops(splitter), stop_strings(stop)

    def draw(nodes: list[tuple[str, Node]], num_samples: int, seed: int) -> list[list[Completion]]:
        prompts = [Prompt(question, node.text, node.token_ids or None) for question, node in nodes]
        return sampler.sample(prompts, num_samples, seed, stop=stops, **({"until": until} if until else {}))

    def closed(node: Node) -> tuple[str, ...]:
        return tuple(closed_steps(node.text, splitter, finished=node.reason is not None, steps_of=steps_of))

    seen: Counter[str] = Counter()
    searches = []
    for question in questions:
        # A repeated question is a separate search with other random choices.
        searches.append(QuestionSearch(question, width, derived_seed(seed, "choices", seen[question], question)))
        seen[question] += 1
    with progress_bar(len(searches), "Guided search", unit="questions", show=show_progress) as bar:
        for depth in range(max_steps):
            for search in searches:
                search.check_budgets(expansions, token_budget, score_budget)
            live = [search for search in searches if search.frontier]
            bar.set_postfix(step=depth, refresh=False)
            bar.update(len(searches) - len(live) - bar.n)
            if not live:
                break
            round_seed = derived_seed(seed, "proposals", depth)
            children = _propose(live, draw, expansions, stops, round_seed)
            if splitter == "whole_lines":
                _close_steps(children, draw, stops, closed, max_tokens, round_seed)
            _score(children, scorer, unfinished_scorer, closed, aggregation, max_tokens)
            for search, proposed in children:
                search.advance(proposed, method, eta, ess_threshold, depth)
    return [search.result(method, splitter, steps_of) for search in searches]


def _scorers(scorer: Scorer | ScoringBackend, eta: float | None) -> tuple[Scorer, Scorer]:
    """The scorer of finished solutions and the scorer of the others. They read scores at `eta` if possible."""
    if not isinstance(scorer, ScoringBackend):
        return scorer, scorer
    scorer = scoring.StepScorer.of(scorer)
    if (readable := eta_or_as_trained(scorer.prm_format, eta, "guided_search")) is not None:
        scorer = scorer.at_eta(readable)
    return scorer, scorer.for_unfinished()


_Children = list[tuple[QuestionSearch, list[list[Node]]]]
_ClosedSteps = Callable[[Node], tuple[str, ...]]
_Draw = Callable[[list[tuple[str, Node]], int, int], list[list[Completion]]]


def _propose(live: list[QuestionSearch], draw: _Draw, expansions: int, stops: tuple[str, ...], seed: int) -> _Children:
    """Samples the children of every node in one call of the sampler. They are not scored yet."""
    nodes = [(search.question, search.nodes[index]) for search in live for index in search.frontier]
    completions = iter(draw(nodes, expansions, seed))
    children = []
    for search in live:
        proposed = [[node] for node in search.nodes]
        for index in search.frontier:
            samples = next(completions)
            search.tokens_generated += sum(completion.num_tokens for completion in samples)
            proposed[index] = [_child(search.nodes[index], completion, stops) for completion in samples]
        children.append((search, proposed))
    return children


def _close_steps(
    children: _Children,
    draw: _Draw,
    stops: tuple[str, ...],
    closed: _ClosedSteps,
    max_tokens: int | None,
    seed: int,
) -> None:
    """Extends the children line by line, in place, until each has one more closed step than its parent."""
    num_closed = {node.text: len(closed(node)) for search, _ in children for node in search.nodes}
    for line in range(MAX_LINES):
        unclosed = [
            (search, siblings, index)
            for search, proposed in children
            for parent, siblings in zip(search.nodes, proposed, strict=True)
            for index, child in enumerate(siblings)
            if child.reason is None
            and (max_tokens is None or child.num_tokens < max_tokens)
            and len(closed(child)) <= num_closed[parent.text]
        ]
        if not unclosed:
            return
        nodes = [(search.question, siblings[index]) for search, siblings, index in unclosed]
        completions = draw(nodes, 1, derived_seed(seed, "line", line))
        for (search, siblings, index), (completion,) in zip(unclosed, completions, strict=True):
            search.tokens_generated += completion.num_tokens
            siblings[index] = _child(siblings[index], completion, stops)


def _child(node: Node, completion: Completion, stops: tuple[str, ...]) -> Node:
    stopped = holds_stop(completion.text, stops)
    reason = "finished" if completion.finished else None if stopped else "length"
    knows_ids = node.token_ids is not None and completion.token_ids
    return node._replace(
        text=node.text + completion.text,
        num_tokens=node.num_tokens + completion.num_tokens,
        reason=reason,
        token_ids=node.token_ids + completion.token_ids if knows_ids else None,
    )


def _score(
    children: _Children,
    scorer: Scorer,
    unfinished_scorer: Scorer,
    closed: _ClosedSteps,
    aggregation: str,
    max_tokens: int | None,
) -> None:
    """Scores the children in place, in one call of the scorer, or in one for finished solutions and one for the others
    if their scorers differ. Each prefix of a question is scored only once."""
    for _, proposed in children:
        for siblings in proposed:
            siblings[:] = [_cut_off(node, max_tokens) for node in siblings]
    nodes = {node for _, proposed in children for siblings in proposed for node in siblings}
    # A finished solution and a prefix with the same steps have different scores only if their scorers differ.
    splits = unfinished_scorer is not scorer
    key_of = {node: (closed(node), not splits or node.reason == "finished") for node in nodes}
    asked: list[tuple[QuestionSearch, tuple[tuple[str, ...], bool]]] = []
    for search, proposed in children:
        reached = dict.fromkeys(key_of[node] for siblings in proposed for node in siblings)
        asked += [(search, key) for key in reached if key not in search.scored]
    for part_scorer, is_finished in ((scorer, True), (unfinished_scorer, False)):
        part = [(search, key) for search, key in asked if key[1] == is_finished]
        if not part:
            continue
        answers = part_scorer.score([search.question for search, _ in part], [list(key[0]) for _, key in part])
        checked = [
            _checked(scores, search.question, key[0]) for scores, (search, key) in zip(answers, part, strict=True)
        ]
        values = aggregate([torch.tensor(scores, dtype=torch.float64) for scores in checked], aggregation).tolist()
        for (search, key), scores, value in zip(part, checked, values, strict=True):
            search.scored[key] = (scores, value)
    for search, proposed in children:
        for siblings in proposed:
            for index, node in enumerate(siblings):
                scores, value = search.scored[key_of[node]]
                siblings[index] = node._replace(scores=scores, value=value)


def _cut_off(node: Node, max_tokens: int | None) -> Node:
    is_too_long = node.reason is None and max_tokens is not None and node.num_tokens >= max_tokens
    return node._replace(reason="length") if is_too_long else node


def _checked(scores: Sequence[float], question: str, steps: Sequence[str]) -> tuple[float, ...]:
    if len(scores) != len(steps):
        raise ValueError(
            f"Scores of {question[:80]!r}: got {len(scores)} for {len(steps)} steps, expected one score per step. "
            "Check the scorer."
        )
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(
                f"Score of step {index + 1} ({steps[index][:80]!r}) of {question[:80]!r}: got {score}, expected a "
                "finite number. Check the reward model's weights and dtype."
            )
    return tuple(map(float, scores))


def _check_arguments(
    method: str, eta: float | None, width: int, expansions: int | None, ess_threshold: float, aggregation: str
) -> int:
    """Raises a `ValueError` for invalid combinations of arguments, and returns the number of expansions."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}. Choose one.")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}. Choose one.")
    if method == "beam" and eta is not None:
        raise ValueError(f"eta: got {eta} with method='beam', expected None, as beams rank by value. Remove eta.")
    if method != "beam" and (eta is None or math.isnan(eta)):
        raise ValueError(f"eta: got {eta} with method={method!r}, expected a number. Pass e.g. 2.0.")
    if method == "particles" and math.isinf(eta):
        raise ValueError(f"eta: got {eta} with method='particles', expected a finite number. Use method='resample'.")
    if method == "particles" and expansions not in (None, 1):
        raise ValueError(f"expansions: got {expansions} with method='particles', expected 1. Raise width instead.")
    if not 0 <= ess_threshold <= 1:
        raise ValueError(f"ess_threshold: got {ess_threshold}, expected a fraction in [0, 1]. Pass e.g. 0.5.")
    expansions = (1 if method == "particles" else 4) if expansions is None else expansions
    _check_limits(width=width, expansions=expansions)
    return expansions


def _check_limits(**limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1. Raise it.")


def _splitter(splitter: str | None, scorer: Any) -> tuple[str, str]:
    """The splitter and the part of a text that it splits. Both default to the scorer's format if it has one."""
    prm_format = getattr(scorer, "prm_format", None)
    if splitter is None:
        if prm_format is None:
            raise ValueError("splitter: got None, and a scorer without a prm_format, expected a splitter. Pass one.")
        splitter = prm_format.splitter
    split_steps("", splitter)
    return splitter, "both" if prm_format is None else prm_format.steps_of
