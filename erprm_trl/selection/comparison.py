"""Compares reward models on the same samples: paired differences of best-of-n with intervals, and a paired test."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..functional.aggregation import AGGREGATIONS
from ..io.text_lists import check_texts
from ..rollouts.records import RolloutRow, as_rows
from .best_of import best_of_n_per_question
from .bootstrap import paired_bootstrap_interval
from .curves import rank_solutions


def paired_differences(
    solutions: Sequence[Sequence[RolloutRow | Mapping[str, Any]]],
    step_scores: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    ns: Sequence[int],
    *,
    aggregations: Sequence[str] = AGGREGATIONS,
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Best-of-n accuracy of every model minus that of the first model, on the same questions and samples.

    Args:
        solutions, step_scores, ns, aggregations:
            See [`selection_curves`]. `step_scores` must have at least two models. Solutions that are mappings need
            only `outcome_reward`.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the paired bootstrap intervals over questions.

    Returns:
        `dict`: `reference`, the name of the first model, and `models`. The latter holds, by name of another model and
        by aggregation, `difference` (`{n: {"mean", "low", "high"}}`) and `test` ([`paired_test`] at the largest n).

    Raises:
        `ValueError`: for fewer than two models.
    """
    check_texts("aggregations", aggregations)
    if len(step_scores) < 2:
        raise ValueError(f"Models: got {len(step_scores)}, expected at least two to compare. Add another model.")
    correct = [[float(row.is_right) for row in rows_N] for rows_N in as_rows(solutions, "outcome_reward")]
    reference, *others = step_scores
    models: dict[str, Any] = {name: {} for name in others}
    for method in aggregations:
        accuracy = {
            name: best_of_n_per_question([rank_solutions(question, method) for question in scores], correct, ns)
            for name, scores in step_scores.items()
        }
        largest = int(np.argmax(ns))
        for name in others:
            models[name][method] = {
                "difference": _difference(accuracy[name], accuracy[reference], ns, level),
                "test": paired_test(accuracy[name][:, largest], accuracy[reference][:, largest]),
            }
    return {"reference": reference, "models": models}


def paired_test(
    left: Sequence[float], right: Sequence[float], *, num_permutations: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """
    Two-sided test of the hypothesis that both methods are right equally often on the same questions.

    If every value is 0 or 1, this is McNemar's exact test ([`mcnemar`]). Otherwise it is a permutation test that flips
    the signs of the differences at random. Values between 0 and 1 are expected correctness: they occur if right and
    wrong solutions are tied, or if n is below the number of samples. For values of 0 and 1 the two tests have the same
    p-value, up to `1 / sqrt(num_permutations)`.

    Args:
        left (`Sequence[float]`):
            Correctness in [0, 1] of the first method, one value per question.
        right (`Sequence[float]`):
            Correctness in [0, 1] of the second method, one value per question in the same order.
        num_permutations (`int`, *optional*, defaults to `10_000`):
            Number of random sign flips. The p-value is at least `1 / (num_permutations + 1)`.
        seed (`int`, *optional*, defaults to `0`):
            Random seed of the sign flips.

    Returns:
        `dict`: `test` (`"mcnemar"` or `"permutation"`), `left_better` and `right_better` (number of questions on which
        that method has the higher value), and `p_value`.
    """
    left_Q, right_Q = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if left_Q.shape != right_Q.shape or left_Q.ndim != 1 or not left_Q.size:
        raise ValueError(
            f"`left` has shape {left_Q.shape} and `right` {right_Q.shape}: expected one value per question in both. "
            "Pass the same questions in the same order."
        )
    for subject, values in (("left", left_Q), ("right", right_Q)):
        bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if bad.size:
            raise ValueError(
                f"`{subject}` is {values[bad[0]]} at row {bad[0]}: expected correctness in [0, 1]. Convert it first."
            )
    left_better, right_better = int((left_Q > right_Q).sum()), int((left_Q < right_Q).sum())
    if np.isin(left_Q, (0, 1)).all() and np.isin(right_Q, (0, 1)).all():
        test, p_value = "mcnemar", mcnemar(left_better, right_better)
    else:
        test, p_value = "permutation", _sign_flips(left_Q - right_Q, num_permutations, seed)
    return {"test": test, "left_better": left_better, "right_better": right_better, "p_value": p_value}


def mcnemar(left_only: int, right_only: int) -> float:
    """
    Exact two-sided p-value of McNemar's test: `min(1, 2 P(X <= min(b, c)))` with `X ~ Binomial(b + c, 1/2)`.

    Args:
        left_only (`int`):
            `b`, the number of questions that only the first method answers correctly.
        right_only (`int`):
            `c`, the number of questions that only the second method answers correctly.

    Returns:
        `float`: the p-value in (0, 1]. It is 1 if the methods never differ.

    Source: McNemar (1947), in the exact binomial form.
    """
    if min(left_only, right_only) < 0:
        raise ValueError(
            f"`left_only` and `right_only` are {left_only} and {right_only}: expected counts of at least 0. Pass the "
            "numbers of questions."
        )
    total = left_only + right_only
    tail = sum(math.comb(total, count) for count in range(min(left_only, right_only) + 1))
    return min(1.0, 2 * tail / 2**total)  # a quotient of integers does not overflow and is rounded only once


def _difference(left: np.ndarray, right: np.ndarray, ns: Sequence[int], level: float) -> dict[int, dict[str, float]]:
    points = {}
    for column, n in enumerate(ns):
        low, high = paired_bootstrap_interval(left[:, column], right[:, column], level=level)
        mean = float((left[:, column] - right[:, column]).mean())
        points[n] = {"mean": mean, "low": low, "high": high}
    return points


def _sign_flips(differences: np.ndarray, num_permutations: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    differences = differences[differences != 0]
    observed = abs(differences.sum()) - 1e-9  # tolerance for sums that differ only in their rounding
    extreme = 0
    for _ in range(num_permutations):
        extreme += abs(rng.choice((-1.0, 1.0), size=len(differences)) @ differences) >= observed
    return (1 + int(extreme)) / (1 + num_permutations)
