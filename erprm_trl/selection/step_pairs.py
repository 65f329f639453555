"""Finds pairs of next steps: solutions to one question that share a prefix and continue it with different steps, whose
values differ by more than their noise."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..rollouts.labels import PosteriorValues, ascending, sample_values
from ..rollouts.records import RolloutRow
from .solution_pairs import Pair


class Value(NamedTuple):
    """Value of a prefix, and the standard deviation of its estimate. The deviation is 0 for a reward of a whole
    solution and for a score."""

    mean: float
    std: float


@dataclass
class Branch:
    """
    A step after a prefix, with all solutions that take it.

    Args:
        step (`str`):
            Text of the step.
        ends (`bool`):
            Whether the solution ends with the step.
        rows (`list[RolloutRow]`):
            Solutions with this prefix and step.
        rewards (`list[float]`):
            Rewards of the continuations after the step, or the reward of the solution if it ends there.
        scores (`list[float]`):
            Scores of the step by a reward model, which are the same for equal texts.
    """

    step: str
    ends: bool
    rows: list[RolloutRow] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class StepValues:
    """
    Values of branches at an eta.

    Args:
        questions (iterable of `list[RolloutRow]`):
            Solutions to each question of the collection, to which the prior of the values is fitted.
        eta (`float`):
            Inverse reward temperature.
        with_noise (`bool`):
            Whether values are posterior means with standard deviations. Otherwise they are plain values without
            deviations.
        shared (`bool`):
            Whether the collection shares continuations, so that equal prefixes have the same rewards.

    Raises:
        `ValueError`: with noise, for an infinite eta or rewards outside [0, 1].
    """

    def __init__(self, questions: Iterable[list[RolloutRow]], eta: float, with_noise: bool, shared: bool):
        self.eta, self.shared = eta, shared
        self._posterior = None
        if with_noise:
            counts: Counter[tuple[float, ...]] = Counter()
            for rows in questions:
                for branches in branching(rows, shared=shared).values():
                    counts.update(ascending(branch.rewards) for branch in branches if not branch.ends)
            self._posterior = PosteriorValues(counts, eta)

    def __call__(self, branch: Branch) -> Value:
        if branch.scores:
            return Value(branch.scores[0], 0.0)
        if branch.ends:
            return Value(branch.rewards[0], 0.0)
        if self._posterior is None:
            return Value(sample_values([branch.rewards], self.eta)[0], 0.0)
        return Value(*self._posterior([branch.rewards])[0])


def branching(
    rows: Sequence[RolloutRow], step_scores: Sequence[Sequence[float]] | None = None, *, shared: bool = False
) -> dict[str, list[Branch]]:
    """
    Finds the prefixes of a question's solutions after which there are different steps.

    Args:
        rows (`Sequence[RolloutRow]`):
            Solutions to one question.
        step_scores (`Sequence[Sequence[float]]`, *optional*):
            Scores of the steps of each solution, empty for a solution that could not be scored. Without them, a step
            has the rewards of the continuations after it.
        shared (`bool`, *optional*, defaults to `False`):
            Whether equal prefixes have the same rewards, which then count once. Otherwise their rewards are pooled.

    Returns:
        `dict[str, list[Branch]]`: the branches after each prefix with at least two. The last step of an unfinished
        solution is left out, because it was cut off. Solutions that are marked `unusable` are left out too.
    """
    branches_of: dict[str, dict[tuple[str, bool], Branch]] = {}
    for index, row in enumerate(rows):
        if not row.is_usable or (step_scores is not None and not step_scores[index]):
            continue
        for place, step in enumerate(row.steps):
            ends = place == len(row.steps) - 1
            if ends and not row.finished:
                continue
            branch = branches_of.setdefault(row.prefix(place), {}).setdefault((step, ends), Branch(step, ends))
            branch.rows.append(row)
            if step_scores is not None:
                branch.scores.append(step_scores[index][place])
            elif not (branch.rewards and (ends or shared)):
                branch.rewards += [row.outcome_reward] if ends else row.prefix_rewards[place]
    return {prefix: list(branches.values()) for prefix, branches in branches_of.items() if len(branches) > 1}


def step_pairs(
    branches_of: dict[str, list[Branch]],
    values: StepValues,
    *,
    completion: str,
    min_margin: float,
    num_std: float,
    pairs_per_question: int | None,
) -> tuple[list[Pair], Counter[str]]:
    """
    Pairs the best and the worst step after each prefix.

    Args:
        branches_of (`dict[str, list[Branch]]`):
            From [`branching`].
        values ([`StepValues`]):
            Value of a branch.
        completion, min_margin, num_std, pairs_per_question:
            See [`preference_pairs`].

    Returns:
        `tuple[list[Pair], Counter[str]]`: the pairs with the largest differences first, and the number of prefixes
        without a pair, by reason.
    """
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for prefix, branches in branches_of.items():
        if completion == "rest":
            branches = [branch for branch in branches if any(row.finished for row in branch.rows)]
        if len(branches) < 2:
            reasons["unfinished"] += 1
            continue
        order = sorted(branches, key=lambda branch: -values(branch).mean)
        best, worst = values(order[0]), values(order[-1])
        difference = best.mean - worst.mean
        if difference <= 0 or difference < min_margin:
            reasons["below_margin"] += 1
        elif difference <= num_std * math.hypot(best.std, worst.std):
            reasons["within_noise"] += 1
        elif (pair := _pair(prefix, order[0], order[-1], best, worst, completion)) is None:
            reasons["outcomes_disagree"] += 1
        else:
            pairs.append(pair)
    pairs.sort(key=lambda pair: pair.score_rejected - pair.score_chosen)
    if pairs_per_question is not None and len(pairs) > pairs_per_question:
        reasons["more_than_pairs_per_question"] += len(pairs) - pairs_per_question
    return pairs[:pairs_per_question], reasons


def _pair(prefix: str, better: Branch, worse: Branch, best: Value, worst: Value, completion: str) -> Pair | None:
    question = better.rows[0].question
    scores = {"score_chosen": best.mean, "score_rejected": worst.mean}
    if completion == "step":
        ends = {"chosen_ends": better.ends, "rejected_ends": worse.ends}
        return Pair(question, prefix, better.step, worse.step, **scores, **ends)
    # The rest of a solution is only a good or bad example of its step if its own outcome does not say the opposite.
    chosen = max((row for row in better.rows if row.finished), key=_outcome)
    rejected = min((row for row in worse.rows if row.finished), key=_outcome)
    if _outcome(chosen) < _outcome(rejected):
        return None
    start = len(prefix)
    return Pair(question, prefix, chosen.text[start:], rejected.text[start:], **scores)


def _outcome(row: RolloutRow) -> float:
    return 0.0 if row.outcome_reward is None else row.outcome_reward
