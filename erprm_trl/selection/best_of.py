"""Best-of-n and pass@n from the scored solutions of each question. Both are exact means over all n-subsets, so the
curves have no resampling noise."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


def best_of_n(scores: Sequence, correct: Sequence, ns: Sequence[int]) -> dict[int, float]:
    """
    Expected accuracy of the solution with the highest score among `n` solutions drawn without replacement, averaged
    over questions.

    The result is the exact mean over all `C(N, n)` subsets. Solutions with equal scores share a win evenly.

    Args:
        scores (`Sequence`):
            One row per question with one score per solution: an array or tensor of shape (Q, N), or ragged rows.
            Infinite scores are allowed, and NaN is an error.
        correct (`Sequence`):
            Correctness in [0, 1] in rows of the same lengths, as booleans or grades.
        ns (`Sequence[int]`):
            Subset sizes, each from 1 to the length of the shortest row.

    Returns:
        `dict[int, float]`: accuracy by `n`.
    """
    ns = list(ns)
    return mean_by_n(best_of_n_per_question(scores, correct, ns), ns)


def best_of_n_per_question(scores: Sequence, correct: Sequence, ns: Sequence[int]) -> np.ndarray:
    """
    Expected accuracy of every question at every `n`, for bootstraps over questions. [`best_of_n`] is its mean.

    The solutions with score `g` win a random subset with probability
    `[C(#{score <= g}, n) - C(#{score < g}, n)] / C(N, n)`. The answer is then right with their mean correctness.

    Args:
        scores (`Sequence`), correct (`Sequence`), ns (`Sequence[int]`):
            As in [`best_of_n`].

    Returns:
        `np.ndarray`: float64 of shape (Q, len(ns)), in [0, 1].
    """
    score_rows, correct_rows = aligned_rows({"scores": scores, "correct": correct})
    check_correct(correct_rows)
    ns = check_ns(ns, correct_rows)
    lengths_Q = np.array([len(row) for row in score_rows])
    accuracy = np.empty((len(score_rows), len(ns)))
    for length in np.unique(lengths_Q):
        questions = np.flatnonzero(lengths_Q == length)
        scores_QN = np.stack([score_rows[q] for q in questions])
        correct_QN = np.stack([correct_rows[q] for q in questions])
        accuracy[questions] = _correct_by_rank(scores_QN, correct_QN) @ _win_probability_by_rank(int(length), ns)
    # Rounding can move the sum of a column's probabilities slightly above 1.
    return np.clip(accuracy, 0.0, 1.0)


def pass_at_n(correct: Sequence, ns: Sequence[int]) -> dict[int, float]:
    """
    Probability that at least one of `n` solutions drawn without replacement is correct, averaged over questions. It is
    the upper bound of every selection method.

    The unbiased estimate is `1 - C(N - c, n) / C(N, n)` with `c` correct solutions of `N`. With grades between 0 and
    1, the result is the expected grade of the best solution in the subset.

    Args:
        correct (`Sequence`):
            One row per question with one value in [0, 1] per solution: an array or tensor of shape (Q, N), or ragged
            rows.
        ns (`Sequence[int]`):
            Subset sizes, each from 1 to the length of the shortest row.

    Returns:
        `dict[int, float]`: pass rate by `n`.
    """
    ns = list(ns)
    return mean_by_n(pass_at_n_per_question(correct, ns), ns)


def pass_at_n_per_question(correct: Sequence, ns: Sequence[int]) -> np.ndarray:
    """
    Pass rate of every question at every `n`, float64 of shape (Q, len(ns)) in [0, 1]. [`pass_at_n`] is its mean.

    It equals best-of-n with the correctness as the score.
    """
    (correct_rows,) = aligned_rows({"correct": correct})
    return best_of_n_per_question(correct_rows, correct_rows, ns)


def _win_probability_by_rank(num_solutions: int, ns: list[int]) -> np.ndarray:
    """Probability that the solution at rank i is the best of a random n-subset, of shape (N, len(ns)). Rank 0 is the
    worst."""
    # The probability is C(i, n-1) / C(N, n). It is computed from n / N at the best rank downwards with the ratio
    # C(i-1, n-1) / C(i, n-1) = (i-n+1) / i. Products of numbers in [0, 1] neither overflow nor cancel, so 12 digits
    # are exact for N in the thousands.
    n = np.array(ns)
    ranks = np.arange(num_solutions - 1, 0, -1)[:, None]
    ratios = np.clip(ranks - n + 1, 0, None) / ranks
    from_best = np.cumprod(np.vstack([n / num_solutions, ratios]), axis=0)
    return from_best[::-1]


def _correct_by_rank(scores_QN: np.ndarray, correct_QN: np.ndarray) -> np.ndarray:
    """Correctness sorted from the lowest score to the highest, with the mean over each run of equal scores."""
    order = np.argsort(scores_QN, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores_QN, order, axis=1)
    sorted_correct = np.take_along_axis(correct_QN, order, axis=1)
    opens_run = np.ones(scores_QN.shape, dtype=bool)
    opens_run[:, 1:] = sorted_scores[:, 1:] != sorted_scores[:, :-1]
    run = np.cumsum(opens_run.ravel()) - 1
    run_mean = np.bincount(run, weights=sorted_correct.ravel()) / np.bincount(run)
    return run_mean[run].reshape(scores_QN.shape)


def mean_by_n(per_question: np.ndarray, ns: Sequence[int]) -> dict[int, float]:
    """Averages a (Q, len(ns)) array over its questions, and returns the means by `n`."""
    return {int(n): float(mean) for n, mean in zip(ns, per_question.mean(axis=0), strict=True)}


def aligned_rows(named: dict[str, Sequence]) -> list[list[np.ndarray]]:
    """
    Converts arrays, tensors or ragged lists to lists of float64 rows, and checks that their shapes agree.

    Args:
        named (`dict[str, Sequence]`):
            The arguments, by their names for error messages.

    Returns:
        `list[list[np.ndarray]]`: one list of rows per argument, in the order of `named`.

    Raises:
        `ValueError`: if there is no question, if a row is not flat, if lengths differ, or if a value is NaN.
    """
    columns = [_as_rows(values, subject) for subject, values in named.items()]
    subjects = list(named)
    for subject, rows in zip(subjects, columns, strict=True):
        if len(rows) != len(columns[0]):
            raise ValueError(
                f"`{subject}` has {len(rows)} rows and `{subjects[0]}` has {len(columns[0])}: expected one row per "
                "question in both. Pass the same questions in the same order."
            )
        for index, (row, first) in enumerate(zip(rows, columns[0], strict=True)):
            if len(row) != len(first):
                raise ValueError(
                    f"`{subject}` has {len(row)} values in row {index} and `{subjects[0]}` has {len(first)}: "
                    "expected one value per solution in both. Pass the same solutions in the same order, without "
                    "padding."
                )
    return columns


def _as_rows(values: Sequence, subject: str) -> list[np.ndarray]:
    # `tolist` converts tensors of every dtype and device, including bfloat16, without importing torch here.
    if hasattr(values, "detach"):
        values = values.detach().cpu().tolist()
    rows = [_as_row(row, f"`{subject}` at row {index}") for index, row in enumerate(values)]
    if not rows:
        raise ValueError(f"`{subject}` is empty: expected one row per question. Check that questions were loaded.")
    for index, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(
                f"`{subject}` has an entry of {row.ndim} dimensions at row {index}: expected one flat row of values "
                "per question. Put the values of a single question into a list."
            )
        missing = np.flatnonzero(np.isnan(row))
        if missing.size:
            raise ValueError(
                f"`{subject}` is NaN or None at row {index}, column {missing[0]}: expected a number for every "
                "solution. Remove the solution from every argument, or give it the score -inf so that it never wins."
            )
    return rows


def _as_row(row: Any, subject: str) -> np.ndarray:
    if isinstance(row, str):
        raise TypeError(
            f"{subject} is the string {row[:60]!r}: expected a list with one number per solution. Convert it first."
        )
    row = row.detach().cpu().tolist() if hasattr(row, "detach") else row
    try:
        return np.asarray(row, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{subject} is {str(row)[:60]}: expected one number per solution ({error}). Convert it first."
        ) from error


def check_correct(correct_rows: list[np.ndarray]) -> None:
    """Raises a `ValueError` that names the first value outside [0, 1]."""
    for index, row in enumerate(correct_rows):
        outside = np.flatnonzero((row < 0) | (row > 1))
        if outside.size:
            raise ValueError(
                f"`correct` is {row[outside[0]]:g} at row {index}, column {outside[0]}: expected booleans or numbers "
                "in [0, 1]. Convert the grader's rewards to 1 for right and 0 for wrong."
            )


def check_ns(ns: Sequence[int], rows: list[np.ndarray]) -> list[int]:
    """Returns `ns` as Python integers. Raises a `ValueError` if one is below 1 or above the length of the shortest
    row."""
    ns = [operator.index(n) for n in ns]
    if not ns:
        raise ValueError("`ns` is empty: expected at least one subset size. Pass for example [1, 2, 4, 8].")
    if min(ns) < 1:
        raise ValueError(f"`ns` has {min(ns)}: expected subset sizes of at least 1. Remove it.")
    shortest = min(range(len(rows)), key=lambda index: len(rows[index]))
    if max(ns) > len(rows[shortest]):
        raise ValueError(
            f"`ns` has {max(ns)} and row {shortest} has only {len(rows[shortest])} solutions: expected every n to be "
            "at most the length of the shortest row. Remove the larger n, or sample more solutions for that question."
        )
    return ns
