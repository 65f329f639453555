"""Majority votes and score-weighted votes over the answers to a question, as expectations over n-subsets of its
solutions."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..rollouts.grading.normal_form import normal_form
from .best_of import aligned_rows, check_correct, check_ns, mean_by_n


# With more solutions, the number of subsets C(N, N/2) exceeds the range of float64.
_MAX_EXACT_SOLUTIONS = 1000
# Sums of the same weights in another order may differ in their last bits, and count as tied.
_TIE_TOLERANCE = 1e-12


def group_answers(
    predictions: Sequence[str | None], equivalent: Callable[[str, str], bool] | None = None
) -> list[int]:
    """
    Groups equal answers to a question. Group ids start at 0, in the order in which the answers first appear.

    Args:
        predictions (`Sequence[str | None]`):
            Answer of each solution, `None` for a solution without an answer.
        equivalent (`Callable[[str, str], bool]`, *optional*):
            Function that tells whether two different strings are the same answer, such as
            [`~erprm_trl.rollouts.Grader.equivalent`]. A new string is compared with the first member of each group in
            order, until one matches. By default, answers are equal if they differ only in markup, units, currency,
            percent sign or thousands separators, such as `18 dollars`, `**18**` and `$18`.

    Returns:
        `list[int]`: one group id per solution, -1 for `None`.
    """
    if isinstance(predictions, str):
        raise TypeError(
            f"`predictions` is a str ({predictions[:60]!r}), expected a list with the answer of each solution. Put a "
            "single answer into a list."
        )
    for index, answer in enumerate(predictions):
        if answer is not None and not isinstance(answer, str):
            raise ValueError(
                f"`predictions` has {answer!r} of type {type(answer).__name__} at index {index}: expected a string, "
                "or None for a missing answer. Format the answer as text first."
            )
    if equivalent is None:
        predictions = [None if answer is None else normal_form(answer) for answer in predictions]
    group_of: dict[str, int] = {}
    representatives: list[str] = []
    for answer in predictions:
        if answer is None or answer in group_of:
            continue
        matches = (
            group
            for group, member in enumerate(representatives)
            if equivalent is not None and equivalent(answer, member)
        )
        group_of[answer] = next(matches, len(representatives))
        if group_of[answer] == len(representatives):
            representatives.append(answer)
    return [-1 if answer is None else group_of[answer] for answer in predictions]


def majority_at_n(groups: Sequence, correct: Sequence, ns: Sequence[int]) -> dict[int, float]:
    """
    Expected accuracy of the most frequent answer among `n` solutions drawn without replacement, averaged over
    questions.

    The result is the exact mean over all `C(N, n)` subsets. Tied answers share the win evenly. Solutions without an
    answer (-1) are part of the subset but never win. A subset with no answer at all is wrong.

    Args:
        groups (`Sequence`):
            One row per question with one answer id per solution, from [`group_answers`]: an array or tensor of shape
            (Q, N), or ragged rows. Ids are integers within a question, and -1 means no answer.
        correct (`Sequence`):
            Correctness in [0, 1] in rows of the same lengths. The correctness of an answer is the mean over its
            solutions, which normally agree. The correctness of a solution without an answer is not used.
        ns (`Sequence[int]`):
            Subset sizes, each from 1 to the length of the shortest row. Rows may have at most 1000 solutions.

    Returns:
        `dict[int, float]`: accuracy by `n`.
    """
    ns = list(ns)
    return mean_by_n(majority_at_n_per_question(groups, correct, ns), ns)


def majority_at_n_per_question(groups: Sequence, correct: Sequence, ns: Sequence[int]) -> np.ndarray:
    """Accuracy of every question at every `n`, float64 of shape (Q, len(ns)) in [0, 1]. [`majority_at_n`] is its
    mean."""
    group_rows, correct_rows = aligned_rows({"groups": groups, "correct": correct})
    _check_groups(group_rows)
    check_correct(correct_rows)
    ns = check_ns(ns, correct_rows)
    accuracy = np.empty((len(group_rows), len(ns)))
    for index, (group_row, correct_row) in enumerate(zip(group_rows, correct_rows, strict=True)):
        if len(group_row) > _MAX_EXACT_SOLUTIONS:
            raise ValueError(
                f"`groups` has {len(group_row)} solutions in row {index}: expected at most {_MAX_EXACT_SOLUTIONS} for "
                "exact majorities. Call `weighted_majority_at_n` with equal weights, which samples subsets."
            )
        membership, group_correct = _answers(group_row, correct_row)
        sizes = membership.sum(axis=0).astype(int).tolist()
        answers = tuple(sorted(zip(sizes, group_correct.tolist(), strict=True)))
        accuracy[index] = _majority_accuracy(answers, len(group_row), tuple(ns))
    return np.clip(accuracy, 0.0, 1.0)


def weighted_majority_at_n(
    groups: Sequence,
    weights: Sequence,
    correct: Sequence,
    ns: Sequence[int],
    num_subsets: int = 512,
    seed: int = 0,
) -> dict[int, float]:
    """
    Expected accuracy of the answer with the largest sum of weights among `n` solutions drawn without replacement,
    averaged over questions.

    If `C(N, n) <= num_subsets`, the result is exact. Otherwise it is **the mean over `num_subsets` random subsets**,
    with a standard error of at most `0.5 / sqrt(num_subsets)` per question. Answers whose sums agree to a relative
    1e-12 share the win evenly. Only answers with a solution in the subset can win, also with weight 0.

    Args:
        groups, correct, ns:
            See [`majority_at_n`].
        weights (`Sequence`):
            Weight of each solution, in rows of the same lengths. Weights are finite and at least 0, for example the
            solution's score as a probability.
        num_subsets (`int`, *optional*, defaults to `512`):
            Maximum number of subsets per question and `n`.
        seed (`int`, *optional*, defaults to `0`):
            Random seed. The subsets depend only on the seed, on the question's row index and on the number of its
            solutions, so that other weights and other `ns` use the same subsets.

    Returns:
        `dict[int, float]`: accuracy by `n`.
    """
    ns = list(ns)
    per_question = weighted_majority_at_n_per_question(groups, weights, correct, ns, num_subsets, seed)
    return mean_by_n(per_question, ns)


def weighted_majority_at_n_per_question(
    groups: Sequence,
    weights: Sequence,
    correct: Sequence,
    ns: Sequence[int],
    num_subsets: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Accuracy of every question at every `n`, float64 of shape (Q, len(ns)) in [0, 1]. [`weighted_majority_at_n`] is
    its mean."""
    named = {"groups": groups, "weights": weights, "correct": correct}
    group_rows, weight_rows, correct_rows = aligned_rows(named)
    _check_groups(group_rows)
    _check_weights(weight_rows)
    check_correct(correct_rows)
    ns = check_ns(ns, correct_rows)
    if num_subsets < 1:
        raise ValueError(f"`num_subsets` is {num_subsets}: expected at least 1. Pass 512 or more.")
    accuracy = np.empty((len(group_rows), len(ns)))
    for index, (group_row, weight_row, correct_row) in enumerate(
        zip(group_rows, weight_rows, correct_rows, strict=True)
    ):
        membership, group_correct = _answers(group_row, correct_row)
        # One matrix product gives the votes and the number of solutions of every answer.
        ballots = np.hstack([membership * weight_row[:, None], membership])
        for column, subsets in enumerate(_subsets(len(group_row), ns, num_subsets, [seed, index])):
            votes, members = np.split(subsets @ ballots, 2, axis=1)
            accuracy[index, column] = _share_wins(votes, members, group_correct)
    return np.clip(accuracy, 0.0, 1.0)


def _answers(group_row: np.ndarray, correct_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The membership (N, G) of each solution in the answers, and the mean correctness (G,) of the answers."""
    membership = (group_row[:, None] == np.unique(group_row[group_row >= 0])).astype(np.float64)
    return membership, (correct_row @ membership) / membership.sum(axis=0)


@functools.lru_cache(maxsize=4096)
def _majority_accuracy(
    answers: tuple[tuple[int, float], ...], num_solutions: int, ns: tuple[int, ...]
) -> tuple[float, ...]:
    """
    Accuracy of the majority at each n, for answers as pairs (number of solutions, correctness).

    For each winning count c, the subsets are counted by a product of polynomials in x (size of the subset) and y
    (number of answers with count c). An answer with m solutions contributes the factor
    `sum_{j<c} C(m, j) x^j + C(m, c) x^c y`, or `(1 + x)^m` if m < c. A second polynomial accumulates the sum of the
    tied answers' correctness, which is divided by the number of ties at the end. All terms are positive, so nothing
    cancels in float64.
    """
    largest_n = max(ns)
    right = np.zeros(largest_n + 1)
    for count in range(1, min(largest_n, max((size for size, _ in answers), default=0)) + 1):
        rivals = [(size, is_right) for size, is_right in answers if size >= count]
        max_ties = min(len(rivals), largest_n // count)
        state = np.zeros((2, max_ties + 1, largest_n + 1))  # (number of subsets, correctness), ties, subset size
        state[0, 0] = _binomials(num_solutions - sum(size for size, _ in rivals), largest_n)
        for size, is_right in rivals:
            ways = _binomials(size, largest_n)
            tied = ways[count] * state[:, :-1, : largest_n + 1 - count]
            tied[1] += is_right * tied[0]
            state = _times_polynomial(state, ways[:count])
            state[:, 1:, count:] += tied
        right += (state[1, 1:] / np.arange(1, max_ties + 1)[:, None]).sum(axis=0)
    return tuple(float(right[n] / math.comb(num_solutions, n)) for n in ns)


@functools.lru_cache(maxsize=4096)
def _binomials(m: int, largest_n: int) -> np.ndarray:
    """C(m, j) for j = 0 .. largest_n."""
    return np.array([math.comb(m, j) for j in range(largest_n + 1)], dtype=np.float64)


def _times_polynomial(state: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Multiplies the polynomials along the last axis by a polynomial, and truncates the result to the axis' length."""
    length = state.shape[-1]
    # Shifted sums are faster for few coefficients, and one product with a banded matrix for many.
    if len(coefficients) <= 4:
        product = coefficients[0] * state
        for power, coefficient in enumerate(coefficients[1:], start=1):
            product[..., power:] += coefficient * state[..., : length - power]
        return product
    padded = np.zeros(2 * length - 1)
    padded[length - 1 : length - 1 + len(coefficients)] = coefficients
    return state @ padded[length - 1 + np.arange(length) - np.arange(length)[:, None]]


def _subsets(num_solutions: int, ns: list[int], num_subsets: int, seed: list[int]) -> Iterator[np.ndarray]:
    """For each n, float64 rows of 0 and 1 over the solutions: all n-subsets if there are at most `num_subsets`, else
    random subsets."""
    places = None
    for n in ns:
        if math.comb(num_solutions, n) <= num_subsets:
            yield _all_subsets(num_solutions, n)
            continue
        if places is None:
            # Each subset is the beginning of a random order of the solutions, for every n.
            orders = np.tile(np.arange(num_solutions, dtype=np.int32), (num_subsets, 1))
            places = np.random.default_rng(seed).permuted(orders, axis=1)
        yield (places < n).astype(np.float64)


@functools.lru_cache(maxsize=16)
def _all_subsets(num_solutions: int, n: int) -> np.ndarray:
    members = np.array(list(itertools.combinations(range(num_solutions), n)))
    subsets = np.zeros((len(members), num_solutions))
    np.put_along_axis(subsets, members, 1.0, axis=1)
    return subsets


def _share_wins(votes: np.ndarray, members: np.ndarray, group_correct: np.ndarray) -> float:
    """Mean over subsets (rows) of the correctness of the winning answers. Ties share the win evenly."""
    if not group_correct.size:
        return 0.0
    # Answers without a solution in the subset have 0 votes, which cannot exceed the best answer's votes.
    best = votes.max(axis=1, keepdims=True)
    wins = (votes >= best - _TIE_TOLERANCE * np.abs(best)) & (members > 0)
    # A subset without any answer has no winner, and counts as wrong.
    return float((wins @ group_correct / np.maximum(wins.sum(axis=1), 1)).mean())


def _check_groups(group_rows: list[np.ndarray]) -> None:
    for index, row in enumerate(group_rows):
        bad = np.flatnonzero((row < -1) | (row != np.floor(row)) | np.isinf(row))
        if bad.size:
            raise ValueError(
                f"`groups` is {row[bad[0]]:g} at row {index}, column {bad[0]}: expected integer ids from 0, or -1 for "
                "no answer. Compute the ids with `group_answers`."
            )


def _check_weights(weight_rows: list[np.ndarray]) -> None:
    for index, row in enumerate(weight_rows):
        bad = np.flatnonzero((row < 0) | np.isinf(row))
        if bad.size:
            raise ValueError(
                f"`weights` is {row[bad[0]]:g} at row {index}, column {bad[0]}: expected finite numbers of at least "
                "0. Convert the scores to probabilities first, or give the solution the weight 0."
            )
