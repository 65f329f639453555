"""Finds pairs of whole solutions: the best against the worst solution to a question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..rollouts.records import RolloutRow


@dataclass(frozen=True)
class Pair:
    """
    Two continuations of a prefix, of which the first is better.

    Args:
        question (`str`):
            Text of the question.
        prefix (`str`):
            Beginning that both solutions share. Empty for a pair of whole solutions.
        chosen, rejected (`str`):
            The better and the worse text after the prefix.
        score_chosen, score_rejected (`float`):
            The values that were compared.
        chosen_ends, rejected_ends (`bool`, *optional*, defaults to `True`):
            Whether the solution ends with the text.
    """

    question: str
    prefix: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    chosen_ends: bool = True
    rejected_ends: bool = True


def solution_pairs(
    rows: Sequence[RolloutRow],
    scores: Sequence[float | None] | None,
    *,
    rank_by: str,
    min_margin: float,
    pairs_per_question: int | None,
) -> tuple[list[Pair], Counter[str], str | None]:
    """
    Pairs the best solution to a question with the worst, the second best with the second worst, and so on.

    Args:
        rows (`Sequence[RolloutRow]`):
            Solutions to one question.
        scores (`Sequence[float | None]`, *optional*):
            Score of each solution by a reward model, `None` for a solution that could not be scored.
        rank_by, min_margin, pairs_per_question:
            See [`preference_pairs`].

    Returns:
        `tuple[list[Pair], Counter[str], str | None]`: the pairs, the number of solutions that were left out, by
        reason, and the reason why there is no pair.
    """
    candidates: list[tuple[float, float, RolloutRow]] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for index, row in enumerate(rows):
        score = None if scores is None else scores[index]
        reason = _unusable(row, scores is not None and score is None, row.text in seen)
        seen.add(row.text)
        if reason is not None:
            left_out[reason] += 1
            continue
        by_reward, by_score = row.outcome_reward or 0.0, score or 0.0
        value, tie = (by_reward, by_score) if rank_by == "reward" else (by_score, by_reward)
        candidates.append((value, tie, row))
    if len(candidates) < 2:
        return [], left_out, "fewer_than_two_solutions"
    order = sorted(candidates, key=lambda candidate: (-candidate[0], -candidate[1]))  # stable for equal solutions
    pairs: list[Pair] = []
    for (best, _, chosen), (worst, _, rejected) in zip(order[: len(order) // 2], reversed(order), strict=False):
        if best <= worst or best - worst < min_margin or len(pairs) == pairs_per_question:
            break
        pairs.append(Pair(chosen.question, "", chosen.text, rejected.text, best, worst))
    if pairs:
        return pairs, left_out, None
    return [], left_out, "all_equal" if order[0][0] == order[-1][0] else "below_margin"


def _unusable(row: RolloutRow, is_unscored: bool, is_duplicate: bool) -> str | None:
    if not row.steps:
        return "no_steps"
    if not row.finished:
        return "unfinished"
    if is_unscored:
        return "too_long_for_reward_model"
    return "duplicate" if is_duplicate else None
