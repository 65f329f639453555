"""Measures the noise of labels that can be seen without knowing which steps are right."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..functional.soft_values import soft_value
from .dataset import RolloutDataset
from .label_cleaning import succeeds
from .labels import ascending
from .records import RolloutRow


LOW_RATES = (0.05, 0.1, 0.25)
MOST_POSITIONS = 12  # longer prefixes share the last position


def measure_label_noise(rollouts: RolloutDataset, eta: float = 0.0) -> dict[str, Any]:
    r"""
    Measures the noise of labels from the stored rewards of continuations. The truth of the steps is not needed.

    Args:
        rollouts ([`RolloutDataset`]):
            Rollouts with continuations.
        eta (`float`, *optional*, defaults to `0.0`):
            Inverse reward temperature of the labels.

    Returns:
        `dict`: with these entries:

        - `eta`, and the numbers of `solutions` with labels, of `right` and `wrong` ones, and of their `prefixes`.
        - `repeated`: the rewards of each prefix at even and at odd places give two labels of the same prefix.
          `prefixes` is the number of prefixes with at least two rewards. `rms_difference` is the root mean squared
          difference of the two labels, and `label_error` half of it: the standard error of a label from all rewards,
          exactly at eta = 0 and approximately at other finite eta, `None` at infinite eta. `hard_disagreement` is the
          share of prefixes in which one half has a success (a reward above 0.5) and the other has none. `pairs` has
          the number of prefixes by the two labels, rounded to a grid of 0.1.
        - `wrong_solutions`: `rises`, the share of steps of wrong solutions after which the success rate is higher than
          before, and `revived`, the share of wrong solutions with a success after their first failing prefix.
        - `right_solutions`: `failing_prefixes`, the share of their proper prefixes without success, and
          `with_failing_prefix`, the share of right solutions with such a prefix. The solution itself shows that these
          labels are too low.
        - `by_position`: for each number of steps, `prefixes`, the shares of labels that are certain (all rewards are
          equal), `certain_failure` and `certain_success`, and the mean rate in `right` and in `wrong` solutions. From
          12 steps on, prefixes count together (`or_more`).
        - `questions`: their number, the mean `rate` ([`RolloutDataset.question_rates`]), and the shares of questions
          whose rate is `below` certain rates, by rate.

    Raises:
        `ValueError`: if the rollouts have no continuations, no solution has labels, or eta is NaN.
    """
    by_position = _by_position(_labelled_rows(rollouts))
    if not by_position:
        raise ValueError(
            f"{rollouts.path}: got no rewards of continuations, expected some for each proper prefix. Collect with "
            "num_continuations >= 1."
        )
    outcomes = Counter(row.is_right for row in _labelled_rows(rollouts))
    return {
        "eta": eta if math.isfinite(eta) else str(eta),
        "solutions": outcomes.total(),
        "right": outcomes[True],
        "wrong": outcomes[False],
        "prefixes": sum(point["prefixes"] for point in by_position),
        "repeated": _repeated(_labelled_rows(rollouts), eta),
        "wrong_solutions": _wrong_solutions(row for row in _labelled_rows(rollouts) if not row.is_right),
        "right_solutions": _right_solutions(row for row in _labelled_rows(rollouts) if row.is_right),
        "by_position": by_position,
        "questions": _questions(rollouts),
    }


def _labelled_rows(rollouts: RolloutDataset) -> Iterator[RolloutRow]:
    """Rows with labels, read from disk: a large collection does not fit into memory."""
    return (row for row in rollouts if row.is_usable and not row.lacks_continuations and row.is_graded)


def _repeated(rows: Iterable[RolloutRow], eta: float) -> dict[str, Any]:
    pairs, squares, disagreement, count = Counter(), 0.0, 0, 0
    values: dict[tuple[float, ...], float] = {}

    def label(rewards: tuple[float, ...]) -> float:
        if rewards not in values:
            values[rewards] = soft_value(torch.tensor(rewards, dtype=torch.float64), eta).item()
        return values[rewards]

    for row in rows:
        for rewards_K in row.prefix_rewards:
            if len(rewards_K) < 2:
                continue
            halves = ascending(rewards_K[::2]), ascending(rewards_K[1::2])
            first, second = map(label, halves)
            count += 1
            squares += (first - second) ** 2
            disagreement += (halves[0][-1] > 0.5) != (halves[1][-1] > 0.5)
            pairs[round(first, 1), round(second, 1)] += 1
    difference = math.sqrt(squares / count) if count else None
    return {
        "prefixes": count,
        "rms_difference": difference,
        "label_error": difference / 2 if count and math.isfinite(eta) else None,
        "hard_disagreement": _share(disagreement, count),
        "pairs": [[*pair, number_of] for pair, number_of in sorted(pairs.items())],
    }


def _wrong_solutions(rows: Iterable[RolloutRow]) -> dict[str, Any]:
    rises = steps = revived = solutions = 0
    for row in rows:
        rates = [_mean(rewards_K) for rewards_K in row.prefix_rewards]
        rises += sum(after > before for before, after in zip(rates, rates[1:], strict=False))
        steps += max(0, len(rates) - 1)
        successes = [succeeds(rewards_K) for rewards_K in row.prefix_rewards]
        revived += False in successes and any(successes[successes.index(False) :])
        solutions += 1
    return {"rises": _share(rises, steps), "revived": _share(revived, solutions)}


def _right_solutions(rows: Iterable[RolloutRow]) -> dict[str, Any]:
    failing = prefixes = with_failing = solutions = 0
    for row in rows:
        failures = sum(not succeeds(rewards_K) for rewards_K in row.prefix_rewards)
        failing += failures
        prefixes += len(row.prefix_rewards)
        with_failing += failures > 0
        solutions += 1
    return {"failing_prefixes": _share(failing, prefixes), "with_failing_prefix": _share(with_failing, solutions)}


def _by_position(rows: Iterable[RolloutRow]) -> list[dict[str, Any]]:
    counts: dict[int, Counter[str]] = {}
    for row in rows:
        kind = "right" if row.is_right else "wrong"
        for place, rewards_K in enumerate(row.prefix_rewards, start=1):
            position, rate = counts.setdefault(min(place, MOST_POSITIONS), Counter()), _mean(rewards_K)
            position["prefixes"] += 1
            position["longer"] += place > MOST_POSITIONS
            position["certain_failure"] += max(rewards_K) == 0
            position["certain_success"] += min(rewards_K) == 1
            position[kind] += 1
            position[f"rate, {kind}"] += rate
    return [
        {
            "position": position,
            "or_more": count["longer"] > 0,
            "prefixes": count["prefixes"],
            "certain_failure": _share(count["certain_failure"], count["prefixes"]),
            "certain_success": _share(count["certain_success"], count["prefixes"]),
            "right": _share(count["rate, right"], count["right"]),
            "wrong": _share(count["rate, wrong"], count["wrong"]),
        }
        for position, count in sorted(counts.items())
    ]


def _questions(rollouts: RolloutDataset) -> dict[str, Any]:
    rates = rollouts.question_rates()
    rates = rates[~np.isnan(rates)]  # without questions that have no rewards yet
    return {
        "questions": len(rates),
        "rate": float(rates.mean()) if len(rates) else None,
        "below": {f"{limit:g}": _share(int((rates < limit).sum()), len(rates)) for limit in LOW_RATES},
    }


def _mean(rewards_K: Sequence[float]) -> float:
    return sum(rewards_K) / len(rewards_K)


def _share(count: float, total: int) -> float | None:
    return count / total if total else None
