"""Votes compared with values worked by hand, brute force over every subset, and identities between them."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from processor_time import limited_processor_time

from erprm_trl.selection.best_of import best_of_n_per_question
from erprm_trl.selection.voting import (
    group_answers,
    majority_at_n,
    majority_at_n_per_question,
    weighted_majority_at_n,
    weighted_majority_at_n_per_question,
)


def brute_force_vote(groups, weights, correct, n):
    """Mean over every n-subset of the mean correctness of the answers with the largest weight, in exact fractions."""
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
    # Multiples of 1/8 are exact in binary, so that their sums can be tied exactly. Some weights are 0.
    weights = rng.integers(0, 5, (num_questions, num_solutions)) / 8
    return groups, weights, correct


def test_group_ids_follow_the_first_appearance():
    assert group_answers(["7", None, "x", "7", "x", "8"]) == [0, -1, 1, 0, 1, 2]
    assert group_answers([None, None]) == [-1, -1]
    assert group_answers([]) == []


def test_group_answers_compares_only_new_strings_with_first_members():
    asked = []

    def equivalent(answer, member):
        asked.append((answer, member))
        return float(answer) == float(member)

    # "1.0" joins "1", "2" opens the next group and "2.0" joins it. Repeated strings and None are never compared.
    assert group_answers(["1", "1.0", "2", None, "1.0", "2.0", "1.00", "2"], equivalent) == [0, 0, 1, -1, 0, 1, 0, 1]
    assert asked == [("1.0", "1"), ("2", "1"), ("2.0", "1"), ("2.0", "2"), ("1.00", "1")]


def test_group_answers_errors_name_values_that_are_not_strings():
    with pytest.raises(ValueError, match="`predictions` has 7 .*index 1.*a string"):
        group_answers(["7", 7])


def test_units_and_markup_do_not_split_votes():
    answers = ["18", "18 dollars", "$18", "**18**.", r"\text{18 eggs}", "19 eggs", None, r"1\,800", "1,800", "x"]
    assert group_answers(answers) == [0, 0, 0, 0, 0, 1, -1, 2, 2, 3]
    # A caller's own equivalence replaces the default.
    assert group_answers(["18", "18 dollars"], lambda left, right: False) == [0, 1]


def test_group_answers_refuses_a_string_instead_of_a_list():
    with pytest.raises(TypeError, match="`predictions` is a str .*'18'.*a list with the answer of each solution"):
        group_answers("18")


def test_majority_worked_by_hand():
    # Answers a, a, b with a right. Pairs: {a,a} -> a: 1, {a,b} twice: tie, 1/2. Mean (1 + 1/2 + 1/2) / 3 = 2/3.
    # One solution: 2/3. All three: a, 1.
    accuracy = majority_at_n([[0, 0, 1]], [[1, 1, 0]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 1.0}, abs=1e-14)


def test_missing_answers_never_win_worked_by_hand():
    # Answers -, -, a with a right. Pairs: {-,-} wrong, {-,a} twice: a. Mean 2/3. Singles: 1/3. All: a wins 1 to 0.
    accuracy = majority_at_n([[-1, -1, 0]], [[0, 0, 1]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0}, abs=1e-14)
    assert majority_at_n([[-1, -1]], [[1, 1]], [1, 2]) == {1: 0.0, 2: 0.0}
    assert weighted_majority_at_n([[-1, -1]], [[1, 1]], [[1, 1]], [1, 2]) == {1: 0.0, 2: 0.0}


def test_weighted_majority_worked_by_hand():
    # a has weight 0.9 and is right, b and b have weight 0.5 each. Pairs: {a,b} twice -> a, {b,b} -> b: 2/3.
    # Singles: 1/3. All three: b by 1.0 to 0.9, wrong.
    accuracy = weighted_majority_at_n([[0, 1, 1]], [[0.9, 0.5, 0.5]], [[1, 0, 0]], [1, 2, 3])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 0.0}, abs=1e-14)
    # A solution with weight 0 takes part: it wins alone, ties with another weight 0, and loses to positive weights.
    # Singles: a right 1, b, c wrong: 1/3. Pairs of a=0, b=0, c=1: {a,b} tie 1/2, the others c: 1/6.
    accuracy = weighted_majority_at_n([[0, 1, 2]], [[0.0, 0.0, 1.0]], [[1, 0, 0]], [1, 2])
    assert accuracy == pytest.approx({1: 1 / 3, 2: 1 / 6}, abs=1e-14)


@pytest.mark.parametrize("num_answers", [1, 2, 4, 8])
def test_votes_are_the_mean_over_every_subset(num_answers):
    groups, weights, correct = random_votes(num_answers, num_answers=num_answers)
    correct[0] = np.linspace(0, 1, 8)  # the correctness of an answer is the mean over its solutions
    ns = list(range(1, 9))
    rows = list(zip(groups.tolist(), weights.tolist(), correct.tolist(), strict=True))
    majority = [[brute_force_vote(g, [1] * 8, c, n) for n in ns] for g, _, c in rows]
    weighted = [[brute_force_vote(g, w, c, n) for n in ns] for g, w, c in rows]
    np.testing.assert_allclose(majority_at_n_per_question(groups, correct, ns), majority, atol=1e-13)
    # All C(8, 4) = 70 subsets are enumerated.
    np.testing.assert_allclose(
        weighted_majority_at_n_per_question(groups, weights, correct, ns, num_subsets=70), weighted, atol=1e-13
    )


def test_majority_of_64_solutions_is_accurate_and_does_not_try_all_choices():
    # Two answers with 40 right and 24 wrong solutions: hypergeometric tail plus half the tie, in exact fractions.
    groups, correct = [[0] * 40 + [1] * 24], [[1] * 40 + [0] * 24]
    ns = [1, 2, 16, 31, 48, 64]
    exact = []
    for n in ns:
        ways = [comb(40, k) * comb(24, n - k) * Fraction(1 + (2 * k > n) - (2 * k < n), 2) for k in range(n + 1)]
        exact.append(float(sum(ways) / comb(64, n)))
    with limited_processor_time():  # about 2 ms; a loop over all choices of 31 solutions does not end
        actual = majority_at_n_per_question(groups, correct, ns)[0]
    np.testing.assert_allclose(actual, exact, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_answers_of_equal_size_win_equally_often(size):
    # 60 / size answers of `size` solutions each, and one answer is right: by symmetry every n gives size / 60.
    groups = [[i // size for i in range(60)]]
    accuracy = majority_at_n(groups, [[float(g == 0) for g in groups[0]]], [1, 2, 7, 30, 60])
    assert accuracy == pytest.approx(dict.fromkeys([1, 2, 7, 30, 60], size / 60), rel=1e-12)


def test_majority_of_one_equals_pass_at_one():
    groups, weights, correct = random_votes(0)
    expected = (correct * (groups >= 0)).mean(axis=1)
    np.testing.assert_allclose(majority_at_n_per_question(groups, correct, [1])[:, 0], expected, atol=1e-15)
    weighted = weighted_majority_at_n_per_question(groups, weights, correct, [1])[:, 0]
    np.testing.assert_allclose(weighted, expected, atol=1e-15)


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.0])
def test_equal_weights_equal_the_majority_vote(weight):
    groups, weights, correct = random_votes(1)
    ns = list(range(1, 9))
    if weight == 0.0:
        ns = [1]  # with all weights 0, every answer in the subset is tied, which equals the majority only for n = 1
    weighted = weighted_majority_at_n_per_question(groups, np.full_like(weights, weight), correct, ns)
    np.testing.assert_allclose(weighted, majority_at_n_per_question(groups, correct, ns), atol=1e-13)


def test_distinct_answers_and_weights_equal_best_of_n():
    weights = np.random.default_rng(0).random((5, 8))
    correct = np.random.default_rng(1).integers(0, 2, (5, 8))
    groups = np.tile(np.arange(8), (5, 1))
    ns = list(range(1, 9))
    weighted = weighted_majority_at_n_per_question(groups, weights, correct, ns)
    np.testing.assert_allclose(weighted, best_of_n_per_question(weights, correct, ns), atol=1e-13)


def test_sampled_subsets_approximate_the_exact_vote_reproducibly():
    groups, weights, correct = random_votes(2, num_questions=40, num_solutions=10)
    exact = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=252)
    sampled = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=251)
    # The standard error per question is at most 0.5 / sqrt(251) = 0.032. Each question may differ by five of them.
    assert 0 < np.abs(sampled - exact).max() < 0.16
    assert abs(sampled.mean() - exact.mean()) < 0.025
    again = weighted_majority_at_n_per_question(groups, weights, correct, [2, 5, 10], num_subsets=251)[:, 1:2]
    np.testing.assert_array_equal(again, sampled)
    other = weighted_majority_at_n_per_question(groups, weights, correct, [5], num_subsets=251, seed=1)
    assert (other != sampled).any()


def test_sampled_subsets_have_n_solutions_each():
    # 32 answers of one solution each. The only right answer has the largest weight, so it wins whenever it is drawn.
    groups, weights, correct = [list(range(32))], [[1.0] + [0.5] * 31], [[1] + [0] * 31]
    accuracy = weighted_majority_at_n(groups, weights, correct, [8, 16, 31, 32], num_subsets=4000)
    # The standard error sqrt(p (1 - p) / 4000) is at most 0.008. One more or one less solution would change p by 1/32.
    assert accuracy[8] == pytest.approx(8 / 32, abs=0.02)
    assert accuracy[16] == pytest.approx(16 / 32, abs=0.02)
    assert accuracy[31] == pytest.approx(31 / 32, abs=1e-14)  # these 32 subsets are enumerated
    assert accuracy[32] == 1.0


def test_sums_that_differ_only_by_rounding_are_tied():
    # 0.1 + 0.2 is 0.30000000000000004 in float64, and counts as tied with 0.3.
    assert weighted_majority_at_n([[0, 0, 1]], [[0.1, 0.2, 0.3]], [[1, 1, 0]], [3]) == {3: 0.5}
    assert weighted_majority_at_n([[0, 0, 1]], [[0.1, 0.2, 0.3 + 1e-9]], [[1, 1, 0]], [3]) == {3: 0.0}


def test_the_order_of_solutions_and_the_ids_of_answers_do_not_matter():
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


def test_ragged_rows_are_computed_independently_and_tensors_equal_lists():
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
        ([[0, -2]], [[1, 1]], "`groups` is -2 at row 0, column 1, expected integer ids"),
        ([[0.5, 1]], [[1, 1]], "`groups` is 0.5 at row 0, column 0"),
        ([[0, 1], [0, 1, 1]], [[1, 1], [1, 1]], "`weights` has 2 values in row 1 and `groups` has 3"),
        ([[0, 1]], [[1, -0.5]], "`weights` is -0.5 at row 0, column 1, expected finite numbers of at least 0"),
        ([[0, 1]], [[float("inf"), 1]], "`weights` is inf at row 0, column 0"),
        ([[0, 1]], [[float("nan"), 1]], "`weights` is NaN or None at row 0, column 0"),
    ],
)
def test_errors_name_invalid_values(groups, weights, message):
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
def test_errors_name_violated_limits(groups, correct, n, message):
    with pytest.raises(ValueError, match=message):
        majority_at_n(groups, correct, [n])


def test_zero_subsets_are_an_error():
    with pytest.raises(ValueError, match="`num_subsets` is 0, .*at least 1"):
        weighted_majority_at_n([[0, 1]], [[1, 1]], [[0, 1]], [1], num_subsets=0)
