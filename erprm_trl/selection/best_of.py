"""Best-of-n and pass@n from one pool of scored solutions per question: the exact mean over all n-subsets, so that the
curves carry no resampling noise."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


def best_of_n(scores: Sequence, correct: Sequence, ns: Sequence[int]) -> dict[int, float]:
    """
    Expected accuracy of the top-scored of `n` solutions drawn without replacement, averaged over questions.

    Exact: the mean over all `C(N, n)` subsets, not over sampled ones. Solutions with equal scores share a win evenly.

    Args:
        scores (`Sequence`):
            One row a question, one number a solution: an array or tensor of shape (Q, N), or ragged rows. Infinities
            are ranked like any number, NaN is an error.
        correct (`Sequence`):
            Rows of the same lengths, in [0, 1]: booleans, or graded correctness.
        ns (`Sequence[int]`):
            Subset sizes, each from 1 to the length of the shortest row.

    Returns:
        `dict[int, float]`: accuracy by `n`.
    """
    ns = list(ns)
    return mean_by_n(best_of_n_per_question(scores, correct, ns), ns)


def best_of_n_per_question(scores: Sequence, correct: Sequence, ns: Sequence[int]) -> np.ndarray:
    """
    What [`best_of_n`] averages: expected accuracy of every question at every `n`, for bootstraps over questions.

    With the row sorted by score, the group of equal scores `g` wins a random subset with probability
    `[C(#{score <= g}, n) - C(#{score < g}, n)] / C(N, n)`, and is then right with its mean correctness.

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
    # The probabilities of a column add up to one only to a few ulps.
    return np.clip(accuracy, 0.0, 1.0)


def pass_at_n(correct: Sequence, ns: Sequence[int]) -> dict[int, float]:
    """
    Probability that at least one of `n` solutions drawn without replacement is correct, averaged over questions: the
    ceiling of every way to pick.

    Unbiased, `1 - C(N - c, n) / C(N, n)` with `c` of `N` solutions correct. Graded correctness in between 0 and 1
    gives the expected correctness of the best solution in the subset.

    Args:
        correct (`Sequence`):
            One row a question, one number in [0, 1] a solution: an array or tensor of shape (Q, N), or ragged rows.
        ns (`Sequence[int]`):
            Subset sizes, each from 1 to the length of the shortest row.

    Returns:
        `dict[int, float]`: pass rate by `n`.
    """
    ns = list(ns)
    return mean_by_n(pass_at_n_per_question(correct, ns), ns)


def pass_at_n_per_question(correct: Sequence, ns: Sequence[int]) -> np.ndarray:
    """
    What [`pass_at_n`] averages: float64 of shape (Q, len(ns)), in [0, 1].

    A subset passes exactly when a picker that scores by correctness is right, so this is best-of-n under that picker.
    """
    (correct_rows,) = aligned_rows({"correct": correct})
    return best_of_n_per_question(correct_rows, correct_rows, ns)


def _win_probability_by_rank(num_solutions: int, ns: list[int]) -> np.ndarray:
    """P(the solution at rank i, counted from 0 at the worst, tops a random n-subset), of shape (N, len(ns))."""
    # C(i, n-1) / C(N, n), run down from n / N at the best rank by C(i-1, n-1) / C(i, n-1) = (i-n+1) / i. Products of
    # numbers in [0, 1] neither overflow nor cancel, so N in the thousands keeps 12 digits.
    n = np.array(ns)
    ranks = np.arange(num_solutions - 1, 0, -1)[:, None]
    ratios = np.clip(ranks - n + 1, 0, None) / ranks
    from_best = np.cumprod(np.vstack([n / num_solutions, ratios]), axis=0)
    return from_best[::-1]


def _correct_by_rank(scores_QN: np.ndarray, correct_QN: np.ndarray) -> np.ndarray:
    """Correctness sorted from the worst score to the best, every run of equal scores replaced by its mean."""
    order = np.argsort(scores_QN, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores_QN, order, axis=1)
    sorted_correct = np.take_along_axis(correct_QN, order, axis=1)
    opens_run = np.ones(scores_QN.shape, dtype=bool)
    opens_run[:, 1:] = sorted_scores[:, 1:] != sorted_scores[:, :-1]
    run = np.cumsum(opens_run.ravel()) - 1
    run_mean = np.bincount(run, weights=sorted_correct.ravel()) / np.bincount(run)
    return run_mean[run].reshape(scores_QN.shape)


def mean_by_n(per_question: np.ndarray, ns: Sequence[int]) -> dict[int, float]:
    """Average a (Q, len(ns)) array over its questions, keyed by `n`."""
    return {int(n): float(mean) for n, mean in zip(ns, per_question.mean(axis=0), strict=True)}


def aligned_rows(named: dict[str, Sequence]) -> list[list[np.ndarray]]:
    """
    Read arrays, tensors or ragged lists as lists of float64 rows, and check that they tell of the same solutions.

    Args:
        named (`dict[str, Sequence]`):
            The arguments by the name that errors should use.

    Returns:
        `list[list[np.ndarray]]`: one list of rows an argument, in the order of `named`.

    Raises:
        `ValueError`: when there is no question, a row is not flat, lengths differ, or a number is NaN.
    """
    columns = [_as_rows(values, subject) for subject, values in named.items()]
    subjects = list(named)
    for subject, rows in zip(subjects, columns, strict=True):
        if len(rows) != len(columns[0]):
            raise ValueError(
                f"`{subject}` has {len(rows)} rows and `{subjects[0]}` has {len(columns[0])}: expected one row a "
                "question in both. Pass the same questions in the same order."
            )
        for index, (row, first) in enumerate(zip(rows, columns[0], strict=True)):
            if len(row) != len(first):
                raise ValueError(
                    f"`{subject}` has {len(row)} numbers in row {index} and `{subjects[0]}` has {len(first)}: "
                    "expected one number a solution in both. Pass the same solutions in the same order, not padded."
                )
    return columns


def _as_rows(values: Sequence, subject: str) -> list[np.ndarray]:
    # `tolist` reads tensors of every dtype and device, bfloat16 included, without importing torch here.
    if hasattr(values, "detach"):
        values = values.detach().cpu().tolist()
    rows = [_as_row(row, f"`{subject}` at row {index}") for index, row in enumerate(values)]
    if not rows:
        raise ValueError(f"`{subject}` is empty: expected at least one row (a question). Check what was loaded.")
    for index, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(
                f"`{subject}` has an entry of {row.ndim} dimensions at row {index}: expected one flat row of numbers "
                "a question. Wrap a single question's numbers in a list."
            )
        missing = np.flatnonzero(np.isnan(row))
        if missing.size:
            raise ValueError(
                f"`{subject}` is NaN or None at row {index}, column {missing[0]}: expected a number for every "
                "solution. Leave the solution out of every argument, or score it -inf so that it never wins."
            )
    return rows


def _as_row(row: Any, subject: str) -> np.ndarray:
    if isinstance(row, str):
        raise TypeError(f"{subject} is the string {row[:60]!r}: expected a list of numbers, one a solution.")
    row = row.detach().cpu().tolist() if hasattr(row, "detach") else row
    try:
        return np.asarray(row, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{subject} is {str(row)[:60]}: expected one number a solution ({error}).") from error


def check_correct(correct_rows: list[np.ndarray]) -> None:
    """Raise a `ValueError` that names the first entry outside [0, 1]."""
    for index, row in enumerate(correct_rows):
        outside = np.flatnonzero((row < 0) | (row > 1))
        if outside.size:
            raise ValueError(
                f"`correct` is {row[outside[0]]:g} at row {index}, column {outside[0]}: expected booleans or numbers "
                "in [0, 1]. Map the grader's rewards to 1 = right, 0 = wrong."
            )


def check_ns(ns: Sequence[int], rows: list[np.ndarray]) -> list[int]:
    """Return `ns` as Python ints; raise a `ValueError` unless each is from 1 to the length of the shortest row."""
    ns = [operator.index(n) for n in ns]
    if not ns:
        raise ValueError("`ns` is empty: expected at least one subset size. Pass for example [1, 2, 4, 8].")
    if min(ns) < 1:
        raise ValueError(f"`ns` has {min(ns)}: expected subset sizes of at least 1. Drop it.")
    shortest = min(range(len(rows)), key=lambda index: len(rows[index]))
    if max(ns) > len(rows[shortest]):
        raise ValueError(
            f"`ns` has {max(ns)} and row {shortest} has only {len(rows[shortest])} solutions: expected every n to be "
            "at most the length of the shortest row. Drop the larger n, or sample more solutions for that question."
        )
    return ns
