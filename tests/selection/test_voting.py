"""Votes against hand-worked values, brute force over every subset, and the identities that tie them together."""

import itertools
import time
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch

from erprm_trl.selection.best_of import best_of_n_per_question
from erprm_trl.selection.voting import (
    group_answers,
    majority_at_n,
    majority_at_n_per_question,
    weighted_majority_at_n,
    weighted_majority_at_n_per_question,
)


def brute_force_vote(groups, weights, correct, n):
    """Mean over every n-subset of the mean correctness of the answers with the most weight, in exact fractions."""
    correct_by_group = {
        g: Fraction(sum(Fraction(c) for h, c in zip(groups, correct, strict=True) if h == g), list(groups).count(g))
        for g in set(groups)
    }
    total = Fraction(0)
    for subset in itertools.combinations(range(len(groups)), n):
        votes = {}
        for i in subset:
            if groups[i] != -1:
                votes[groups[i]] = votes.get(groups[i], 0) + Fraction(weights[i])
        winners = [g for g, vote in votes.items() if vote == max(votes.values())]
        if winners:
            total += sum(correct_by_group[g] for g in winners) / len(winners)
    return float(total / comb(len(groups), n))


def random_votes(seed, num_questions=6, num_solutions=8, num_answers=4):
    rng = np.random.default_rng(seed)
    groups = rng.integers(-1, num_answers, (num_questions, num_solutions))
    correct = ((groups == 0) | (groups == 2)).astype(float)
    # Eighths are exact in binary: their sums tie exactly, and some weights are 0.
    weights = rng.integers(0, 5, (num_questions, num_solutions)) / 8
    return groups, weights, correct


def test_group_answers_numbers_by_first_appearance():
    assert group_answers(["7", None, "x", "7", "x", "8"]) == [0, -1, 1, 0, 1, 2]
    assert group_answers([None, None]) == [-1, -1]
    assert group_answers([]) == []


def test_group_answers_asks_about_new_strings_and_first_members_only():
    asked = []

    def equivalent(answer, member):
        asked.append((answer, member))
        return float(answer) == float(member)

    # "1.0" joins "1"; "2" and "2.0" open and join the next group; repeats and None are never asked about.
    assert group_answers(["1", "1.0", "2", None, "1.0", "2.0", "1.00", "2"], equivalent) == [0, 0, 1, -1, 0, 1, 0, 1]
    assert asked == [("1.0", "1"), ("2", "1"), ("2.0", "1"), ("2.0", "2"), ("1.00", "1")]


def test_group_answers_names_what_is_not_a_string():
    with pytest.raises(ValueError, match="`predictions` has 7 .*index 1.*a string"):
        group_answers(["7", 7])


def test_votes_are_not_split_by_units_and_marks():
    answers = ["18", "18 dollars", "$18", "**18**.", r"\text{18 eggs}", "19 eggs", None, r"1\,800", "1,800", "x"]
    assert group_answers(answers) == [0, 0, 0, 0, 0, 1, -1, 2, 2, 3]
    # A caller's own equivalence decides alone.
    assert group_answers(["18", "18 dollars"], lambda left, right: False) == [0, 1]


def test_group_answers_refuses_a_text_in_place_of_a_list():
    with pytest.raises(TypeError, match="`predictions` is a str .*'18'.*a list with the answer of each solution"):
        group_answers("18")


def test_majority_worked_by_hand():
    # Answers a, a, b with a right. Pairs: {a,a} -> a: 1, {a,b} twice: tie, 1/2. Mean (1 + 1/2 + 1/2) / 3 = 2/3.
    # One solution: 2/3. All three: a, 1.
    accuracy = majority_at_n([[0, 0, 1]], [[1, 1, 0]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 1.0}, abs=1e-14)


def test_no_answer_takes_a_place_and_never_wins_by_hand():
    # Answers -, -, a with a right. Pairs: {-,-} wrong, {-,a} twice: a. Mean 2/3. Singles: 1/3. All: a wins 1 to 0.
    accuracy = majority_at_n([[-1, -1, 0]], [[0, 0, 1]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0}, abs=1e-14)
    assert majority_at_n([[-1, -1]], [[1, 1]], [1, 2]) == {1: 0.0, 2: 0.0}
    assert weighted_majority_at_n([[-1, -1]], [[1, 1]], [[1, 1]], [1, 2]) == {1: 0.0, 2: 0.0}


def test_weighted_majority_worked_by_hand():
    # a weighs 0.9 and is right, b and b weigh 0.5 each. Pairs: {a,b} twice -> a, {b,b} -> b: 2/3.
    # Singles: 1/3. All three: b by 1.0 to 0.9, wrong.
    accuracy = weighted_majority_at_n([[0, 1, 1]], [[0.9, 0.5, 0.5]], [[1, 0, 0]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 0.0}, abs=1e-14)
    # Weight 0 still takes part: alone it wins, two zeros tie, and it never beats a positive weight.
    # Singles: a right 1, b, c wrong: 1/3. Pairs of a=0, b=0, c=1: {a,b} tie 1/2, the others c: 1/6.
    accuracy = weighted_majority_at_n([[0, 1, 2]], [[0.0, 0.0, 1.0]], [[1, 0, 0]], [1, 2])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 1 / 6}, abs=1e-14)


@pytest.mark.parametrize("num_answers", [1, 2, 4, 8])
def test_votes_are_the_mean_over_every_subset(num_answers):
    groups, weights, correct = random_votes(num_answers, num_answers=num_answers)
    correct[0] = np.linspace(0, 1, 8)  # answers judged differently from solution to solution count with their mean
    ns = list(range(1, 9))
    rows = list(zip(groups.tolist(), weights.tolist(), correct.tolist(), strict=True))
    majority = [[brute_force_vote(g, [1] * 8, c, n) for n in ns] for g, _, c in rows]
    weighted = [[brute_force_vote(g, w, c, n) for n in ns] for g, w, c in rows]
    np.testing.assert_allclose(majority_at_n_per_question(groups, correct, ns), majority, atol=1e-13)
    # C(8, 4) = 70 subsets: all of them are enumerated.
    np.testing.assert_allclose(
        weighted_majority_at_n_per_question(groups, weights, correct, ns, num_subsets=70), weighted, atol=1e-13
    )


def test_majority_of_64_keeps_its_digits_and_is_quick():
    # Two answers, 40 right and 24 wrong: hypergeometric tail plus half the tie, in exact fractions.
    groups, correct = [[0] * 40 + [1] * 24], [[1] * 40 + [0] * 24]
    ns = [1, 2, 16, 31, 48, 64]
    exact = []
    for n in ns:
        ways = [comb(40, k) * comb(24, n - k) * Fraction(1 + (2 * k > n) - (2 * k < n), 2) for k in range(n + 1)]
        exact.append(float(sum(ways) / comb(64, n)))
    start = time.perf_counter()
    actual = majority_at_n_per_question(groups, correct, ns)[0]
    assert time.perf_counter() - start < 0.5  # about 2 ms on a laptop
    np.testing.assert_allclose(actual, exact, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_interchangeable_answers_win_equally_often(size):
    # 60 / size answers of `size` solutions each, one right: by symmetry every n gives size / 60.
    groups = [[i // size for i in range(60)]]
    accuracy = majority_at_n(groups, [[float(g == 0) for g in groups[0]]], [1, 2, 7, 30, 60])
    assert accuracy == pytest.approx(dict.fromkeys([1, 2, 7, 30, 60], size / 60), rel=1e-12)


def test_majority_of_one_is_pass_at_one_among_answers():
    groups, weights, correct = random_votes(0)
    expected = (correct * (groups >= 0)).mean(axis=1)
    np.testing.assert_allclose(majority_at_n_per_question(groups, correct, [1])[:, 0], expected, atol=1e-15)
    weighted = weighted_majority_at_n_per_question(groups, weights, correct, [1])[:, 0]
    np.testing.assert_allclose(weighted, expected, atol=1e-15)


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.0])
def test_equal_weights_vote_like_the_majority(weight):
    groups, weights, correct = random_votes(1)
    ns = list(range(1, 9))
    if weight == 0.0:
        ns = [1]  # with nothing to weigh, every answer in the subset ties: the majority only for one solution
    weighted = weighted_majority_at_n_per_question(groups, np.full_like(weights, weight), correct, ns)
    np.testing.assert_allclose(weighted, majority_at_n_per_question(groups, correct, ns), atol=1e-13)


def test_distinct_answers_and_weights_vote_like_best_of_n():
    weights = np.random.default_rng(0).random((5, 8))
    correct = np.random.default_rng(1).integers(0, 2, (5, 8))
    groups = np.tile(np.arange(8), (5, 1))
    ns = list(range(1, 9))
    weighted = weighted_majority_at_n_per_question(groups, weights, correct, ns)
    np.testing.assert_allclose(weighted, best_of_n_per_question(weights, correct, ns), atol=1e-13)


def test_sampled_subsets_come_near_the_exact_vote_and_repeat():
    groups, weights, correct = random_votes(2, num_questions=40, num_solutions=10)
    exact = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=252)
    sampled = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=251)
    # Standard error at most 0.5 / sqrt(251) = 0.032 a question: five of them bound each, and the mean of 40 is nearer.
    assert 0 < np.abs(sampled - exact).max() < 0.16
    assert abs(sampled.mean() - exact.mean()) < 0.025
    again = weighted_majority_at_n_per_question(groups, weights, correct, [2, 5, 10], num_subsets=251)[:, 1:2]
    np.testing.assert_array_equal(again, sampled)
    other = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=251, seed=1)
    assert (other != sampled).any()


def test_sampled_subsets_have_n_solutions_each():
    # 32 answers of one solution each; the only right one outweighs the rest, so it wins whenever it is drawn: n / 32.
    groups, weights, correct = [list(range(32))], [[1.0] + [0.5] * 31], [[1] + [0] * 31]
    accuracy = weighted_majority_at_n(groups, weights, correct, [8, 16, 31, 32], num_subsets=4000)
    # Standard error sqrt(p (1 - p) / 4000) <= 0.008, and one solution more or less would move it by 1/32 = 0.031.
    assert accuracy[8] == pytest.approx(8 / 32, abs=0.02)
    assert accuracy[16] == pytest.approx(16 / 32, abs=0.02)
    assert accuracy[31] == pytest.approx(31 / 32, abs=1e-14)  # 32 subsets: enumerated
    assert accuracy[32] == 1.0


def test_sums_that_differ_by_rounding_alone_tie():
    # 0.1 + 0.2 is 0.30000000000000004 in float64, and ties with 0.3.
    assert weighted_majority_at_n([[0, 0, 1]], [[0.1, 0.2, 0.3]], [[1, 1, 0]], [3]) == {3: 0.5}
    assert weighted_majority_at_n([[0, 0, 1]], [[0.1, 0.2, 0.3 + 1e-9]], [[1, 1, 0]], [3]) == {3: 0.0}


def test_order_and_names_do_not_matter():
    groups, weights, correct = random_votes(3)
    rng = np.random.default_rng(0)
    solutions, questions = rng.permutation(8), rng.permutation(6)
    renamed = np.where(groups >= 0, 100 - 7 * groups, -1)
    shuffle = (questions[:, None], solutions)
    ns = [2, 3, 8]
    np.testing.assert_allclose(
        majority_at_n_per_question(renamed[shuffle], correct[shuffle], ns),
        majority_at_n_per_question(groups, correct, ns)[questions],
        atol=1e-13,
    )
    np.testing.assert_allclose(
        weighted_majority_at_n_per_question(renamed[shuffle], weights[shuffle], correct[shuffle], ns),
        weighted_majority_at_n_per_question(groups, weights, correct, ns)[questions],
        atol=1e-13,
    )


def test_ragged_rows_and_tensors_vote_alone():
    groups, weights, correct = random_votes(4, num_questions=3)
    rows = [[row[:n] for row, n in zip(values, [3, 8, 5], strict=True)] for values in (groups, weights, correct)]
    groups, weights, correct = rows
    alone = [majority_at_n_per_question([g], [c], [1, 3])[0] for g, c in zip(groups, correct, strict=True)]
    tensors = [torch.tensor(row) for row in groups]
    np.testing.assert_array_equal(majority_at_n_per_question(tensors, correct, [1, 3]), alone)
    assert majority_at_n(groups, correct, [3])[3] == pytest.approx(np.mean(alone, axis=0)[1])
    weighted = weighted_majority_at_n_per_question(groups, weights, correct, [3])
    assert weighted[2, 0] == weighted_majority_at_n_per_question(groups[2:], weights[2:], correct[2:], [3])[0, 0]


@pytest.mark.parametrize(
    ("groups", "weights", "message"),
    [
        ([[0, -2]], [[1, 1]], "`groups` is -2 at row 0, column 1: expected integer ids"),
        ([[0.5, 1]], [[1, 1]], "`groups` is 0.5 at row 0, column 0"),
        ([[0, 1], [0, 1, 1]], [[1, 1], [1, 1]], "`weights` has 2 numbers in row 1 and `groups` has 3"),
        ([[0, 1]], [[1, -0.5]], "`weights` is -0.5 at row 0, column 1: expected finite numbers of at least 0"),
        ([[0, 1]], [[float("inf"), 1]], "`weights` is inf at row 0, column 0"),
        ([[0, 1]], [[float("nan"), 1]], "`weights` is NaN or None at row 0, column 0"),
    ],
)
def test_what_cannot_vote_is_named(groups, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_majority_at_n(groups, weights, [[0] * len(row) for row in groups], [1])


@pytest.mark.parametrize(
    ("groups", "correct", "n", "message"),
    [
        ([[0, 1]], [[0, 1]], 3, "`ns` has 3 and row 0 has only 2"),
        ([[0, -3]], [[0, 1]], 1, "`groups` is -3 at row 0"),
        ([[0, 1]], [[0, 2]], 1, "`correct` is 2 at row 0, column 1"),
        ([[0] * 1001], [[0] * 1001], 1, "`groups` has 1001 .*at most 1000"),
    ],
)
def test_limits_are_named(groups, correct, n, message):
    with pytest.raises(ValueError, match=message):
        majority_at_n(groups, correct, [n])


def test_no_subsets_are_named():
    with pytest.raises(ValueError, match="`num_subsets` is 0: .*at least 1"):
        weighted_majority_at_n([[0, 1]], [[1, 1]], [[0, 1]], [1], num_subsets=0)
