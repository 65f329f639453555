"""Two reward models on the same samples: paired differences of best-of-n with intervals, and a test at all samples."""

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
    Best-of-n of every model minus that of the first, on the same questions and samples.

    Args:
        solutions, step_scores, ns, aggregations:
            As in [`selection_curves`], with `step_scores` of at least two models. Mappings need `outcome_reward`.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the paired bootstrap intervals over questions.

    Returns:
        `dict`: `reference`, the first model's name, and `models`, by name of another model and aggregation
        `difference` (`{n: {"mean", "low", "high"}}`) and `test`, [`paired_test`] of the picks at the largest n.

    Raises:
        `ValueError`: for fewer than two models.
    """
    check_texts("aggregations", aggregations)
    if len(step_scores) < 2:
        raise ValueError(f"Models: got {len(step_scores)}, expected two or more to compare. Give another model.")
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
    Two-sided test of "neither method is right more often" on the same questions.

    Where every number is 0 or 1 it is McNemar's test, exact ([`mcnemar`]). Where a pick is tied between right and
    wrong solutions, or n is less than all samples, a question has an *expected* correctness in between, and McNemar's
    counts do not exist: then the signs of the questions' differences are flipped at random, which asks the same and
    gives the same p-value when all numbers are 0 or 1, up to `1 / sqrt(num_permutations)`.

    Args:
        left (`Sequence[float]`), right (`Sequence[float]`):
            Correctness in [0, 1], one number a question each, in the same order.
        num_permutations (`int`, *optional*, defaults to `10_000`):
            Random flips; the p-value is at least `1 / (num_permutations + 1)`.
        seed (`int`, *optional*, defaults to `0`):
            Of the flips.

    Returns:
        `dict`: `test` (`"mcnemar"` or `"permutation"`), `left_better` and `right_better` (questions on which one has
        the higher number), `p_value`.
    """
    left_Q, right_Q = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if left_Q.shape != right_Q.shape or left_Q.ndim != 1 or not left_Q.size:
        raise ValueError(
            f"`left` has shape {left_Q.shape} and `right` {right_Q.shape}: expected one number a question in both. "
            "Pass the same questions in the same order."
        )
    for subject, values in (("left", left_Q), ("right", right_Q)):
        bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if bad.size:
            raise ValueError(f"`{subject}` is {values[bad[0]]} at row {bad[0]}: expected correctness in [0, 1].")
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
        left_only (`int`), right_only (`int`):
            `b` and `c`: questions that one method alone gets right. Those that both or neither get right do not count.

    Returns:
        `float`: in (0, 1]; 1 where the methods never differ.

    Source: McNemar (1947), in the exact binomial form.
    """
    if min(left_only, right_only) < 0:
        raise ValueError(f"`left_only` and `right_only` are {left_only} and {right_only}: expected counts from 0.")
    total = left_only + right_only
    tail = sum(math.comb(total, count) for count in range(min(left_only, right_only) + 1))
    return min(1.0, 2 * tail / 2**total)  # integers: a quotient of numbers of any size is rounded once


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
    observed = abs(differences.sum()) - 1e-9  # sums of the same numbers in another order still tie
    extreme = 0
    for _ in range(num_permutations):
        extreme += abs(rng.choice((-1.0, 1.0), size=len(differences)) @ differences) >= observed
    return (1 + int(extreme)) / (1 + num_permutations)
