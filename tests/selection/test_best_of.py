"""`best_of_n` and `pass_at_n` compared with values worked by hand, brute force over every subset, and identities."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch

from erprm_trl.selection.best_of import best_of_n, best_of_n_per_question, pass_at_n, pass_at_n_per_question


def brute_force_best_of_n(scores, correct, n):
    """Mean over every n-subset of the mean correctness of its members with the highest score, in plain Python."""
    accuracies = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        winners = [correct[i] for i in subset if scores[i] == best]
        accuracies.append(sum(winners) / len(winners))
    return sum(accuracies) / len(accuracies)


def random_rows(seed, num_questions=6, num_solutions=7, num_levels=3):
    """Rows with few different scores, so that most rows have ties."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_levels, (num_questions, num_solutions)).astype(float)
    return scores, rng.integers(0, 2, (num_questions, num_solutions)).astype(float)


def test_best_of_n_worked_by_hand():
    # Scores 1 < 2 < 3, and only 2 is right. The pairs {1,2} {1,3} {2,3} pick 2 (right), 3, 3: 1/3.
    # Triples always pick 3: 0. Singles: 1/3.
    accuracy = best_of_n([[1.0, 2.0, 3.0]], [[0, 1, 0]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 0.0}, abs=1e-15)


def test_best_of_n_with_ties_worked_by_hand():
    # Scores a=1, b=2, c=2, only b right. Pairs: {a,b} -> b: 1. {a,c} -> c: 0. {b,c} tie: 1/2. Mean 1/2.
    # The triple is a tie of b and c: 1/2.
    accuracy = best_of_n([[1.0, 2.0, 2.0]], [[False, True, False]], [2, 3])
    assert accuracy == pytest.approx({2: 0.5, 3: 0.5}, abs=1e-15)


def test_pass_at_n_worked_by_hand():
    # N=4, c=1: 1 - C(3,2)/C(4,2) = 1 - 3/6 = 1/2. c=0 never passes. Mean of the two questions: 1/4.
    assert pass_at_n([[0, 1, 0, 0], [0, 0, 0, 0]], [2]) == pytest.approx({2: 0.25}, abs=1e-15)
    # Graded: pairs of {0.2, 0.5, 1.0} have maxima 0.5, 1, 1: mean 2.5/3.
    assert pass_at_n([[0.2, 0.5, 1.0]], [2]) == pytest.approx({2: 2.5 / 3}, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_best_of_n_is_the_mean_over_every_subset(seed):
    scores, correct = random_rows(seed)
    scores[0, :2] = -np.inf
    correct[1] = np.random.default_rng(seed).random(7)
    ns = list(range(1, 8))
    expected = [[brute_force_best_of_n(s, c, n) for n in ns] for s, c in zip(scores, correct, strict=True)]
    np.testing.assert_allclose(best_of_n_per_question(scores, correct, ns), expected, atol=1e-14)


@pytest.mark.parametrize("num_solutions", [5, 64, 1024])
def test_pass_at_n_is_the_exact_fraction(num_solutions):
    ns = [n for n in (1, 2, 5, 17, 64, 511, 512, 1023, 1024) if n <= num_solutions]
    counts = [c for c in (0, 1, 3, 40, 1000) if c <= num_solutions]
    correct = [[1] * c + [0] * (num_solutions - c) for c in counts]
    exact = [[float(1 - Fraction(comb(num_solutions - c, n), comb(num_solutions, n))) for n in ns] for c in counts]
    np.testing.assert_allclose(pass_at_n_per_question(correct, ns), exact, rtol=1e-11, atol=0)


def test_best_of_n_is_accurate_with_1024_solutions():
    # Distinct scores, one correct solution at rank i: C(i, n-1) / C(N, n), in exact integers.
    num_solutions, ns = 1024, [1, 2, 30, 512, 1000]
    for rank in (0, 29, 700, 999, 1023):
        correct = np.arange(num_solutions) == rank
        exact = [float(Fraction(comb(rank, n - 1), comb(num_solutions, n))) for n in ns]
        actual = best_of_n_per_question([np.arange(num_solutions)], [correct], ns)[0]
        np.testing.assert_allclose(actual, exact, rtol=1e-11, atol=1e-300)


def test_n_of_one_is_the_mean_and_n_of_all_is_the_best_solution():
    rng = np.random.default_rng(0)
    scores, correct = rng.random((20, 9)), rng.integers(0, 2, (20, 9))
    ends = best_of_n_per_question(scores, correct, [1, 9])
    np.testing.assert_allclose(ends[:, 0], correct.mean(axis=1), atol=1e-15)
    np.testing.assert_allclose(ends[:, 1], correct[np.arange(20), scores.argmax(axis=1)], atol=1e-15)


def test_constant_scores_equal_a_random_choice():
    _, correct = random_rows(1)
    ns = list(range(1, 8))
    accuracy = best_of_n_per_question(np.full_like(correct, 0.3), correct, ns)
    np.testing.assert_allclose(accuracy, np.repeat(correct.mean(axis=1)[:, None], len(ns), axis=1), atol=1e-14)


def test_an_oracle_score_reaches_pass_at_n_and_no_score_exceeds_it():
    scores, correct = random_rows(2)
    ns = list(range(1, 8))
    exact = [[1 - comb(7 - int(c.sum()), n) / comb(7, n) for n in ns] for c in correct]
    np.testing.assert_allclose(best_of_n_per_question(correct, correct, ns), exact, atol=1e-14)
    assert (best_of_n_per_question(scores, correct, ns) <= np.array(exact) + 1e-14).all()


def test_monotone_maps_of_the_scores_do_not_change_best_of_n():
    scores, correct = random_rows(3)
    expected = best_of_n_per_question(scores, correct, [1, 3, 7])
    np.testing.assert_array_equal(best_of_n_per_question(np.exp(3 * scores) - 5, correct, [1, 3, 7]), expected)


def test_order_of_solutions_and_questions_does_not_matter():
    scores, correct = random_rows(4)
    expected = best_of_n_per_question(scores, correct, [2, 4])
    rng = np.random.default_rng(0)
    solutions, questions = rng.permutation(7), rng.permutation(6)
    shuffled = best_of_n_per_question(scores[questions][:, solutions], correct[questions][:, solutions], [2, 4])
    np.testing.assert_allclose(shuffled, expected[questions], atol=1e-15)


def test_ragged_rows_are_computed_independently():
    scores, correct = random_rows(5, num_questions=4)
    lengths = [3, 7, 3, 5]
    ragged = [[row[:n].tolist() for row, n in zip(rows, lengths, strict=True)] for rows in (scores, correct)]
    alone = [best_of_n_per_question([s], [c], [1, 3])[0] for s, c in zip(*ragged, strict=True)]
    np.testing.assert_array_equal(best_of_n_per_question(*ragged, [1, 3]), alone)
    assert best_of_n(*ragged, [1, 3]) == pytest.approx(dict(zip([1, 3], np.mean(alone, axis=0), strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_dtype_equal_lists(dtype):
    scores, correct = random_rows(6)
    tensor = torch.tensor(scores, dtype=dtype, requires_grad=True)
    expected = best_of_n_per_question(scores, correct, [2, 5])
    np.testing.assert_array_equal(best_of_n_per_question(tensor, torch.tensor(correct).bool(), [2, 5]), expected)
    np.testing.assert_array_equal(best_of_n_per_question(list(tensor), correct.tolist(), [2, 5]), expected)


@pytest.mark.parametrize(
    ("scores", "correct", "ns", "message"),
    [
        ([[0.1, 0.2]], [[1, 0]], [0, 1], "`ns` has 0: expected subset sizes of at least 1"),
        ([[0.1, 0.2]], [[1, 0]], [], "`ns` is empty"),
        ([[0.1, 0.2], [0.1]], [[1, 0], [1]], [1, 2], "`ns` has 2 and row 1 has only 1 solutions"),
        ([[0.1, 0.2], [0.1, 0.3]], [[1, 0], [1]], [1], "`correct` has 1 values in row 1 and `scores` has 2"),
        ([[0.1, 0.2]], [[1, 0], [1, 1]], [1], "`correct` has 2 rows and `scores` has 1"),
        ([[0.1, 0.2], [0.1, float("nan")]], [[1, 0], [1, 1]], [1], "`scores` is NaN or None at row 1, column 1"),
        ([[0.1, 0.2]], [[1, None]], [1], "`correct` is NaN or None at row 0, column 1"),
        ([[0.1, 0.2]], [[1, -1]], [1], "`correct` is -1 at row 0, column 1: expected booleans or numbers in"),
        ([], [], [1], "`scores` is empty"),
        ([0.1, 0.2], [1, 0], [1], "`scores` has an entry of 0 dimensions at row 0"),
        ([[]], [[]], [1], "`ns` has 1 and row 0 has only 0 solutions"),
    ],
)
def test_errors_name_invalid_values(scores, correct, ns, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(scores, correct, ns)


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (
            ["0.9", [0.1]],
            TypeError,
            r"`scores` at row 0 is the string '0.9': expected a list with one number per solution",
        ),
        ("01", TypeError, r"`scores` at row 0 is the string '0'"),
        ([[0.1], ["high"]], ValueError, r"`scores` at row 1 is \['high'\]: expected one number per solution"),
    ],
)
def test_errors_name_text_instead_of_numbers(scores, error, message):
    with pytest.raises(error, match=message):
        best_of_n(scores, [[1], [0]], [1])
