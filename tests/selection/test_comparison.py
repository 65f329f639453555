"""Paired comparisons: McNemar's test in exact fractions, all sign flips, and the differences between models."""

import itertools
import json
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from erprm_trl.report import format_difference_table
from erprm_trl.selection import (
    best_of_n_per_question,
    mcnemar,
    paired_bootstrap_interval,
    paired_differences,
    paired_test,
)


def test_mcnemar_worked_by_hand():
    # 1 against 5: P(X <= 1) with X ~ Bin(6, 1/2) is (1 + 6) / 64, twice is 14/64. Equal counts and zero counts: 1.
    assert mcnemar(1, 5) == mcnemar(5, 1) == 14 / 64
    assert mcnemar(0, 10) == 2 / 1024
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("b", "c"), [(0, 1), (2, 9), (40, 60), (700, 900), (0, 2000)])
def test_mcnemar_equals_exact_fractions(b, c):
    n = b + c
    at_least_as_far = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(b - c))
    assert mcnemar(b, c) == float(Fraction(at_least_as_far, 2**n))


def test_values_of_0_and_1_use_mcnemars_test():
    left, right = [1, 1, 1, 0, 1, 0, 1.0], [0, 0, 1, 0, 0, 1, 0]
    expected = {"test": "mcnemar", "left_better": 4, "right_better": 1, "p_value": mcnemar(4, 1)}
    assert paired_test(left, right) == expected


def test_graded_values_use_the_permutation_test():
    left, right = [1, 1, 0.5, 0, 1, 0.75], [0, 0.5, 1, 0, 0.25, 0.25]
    differences = np.subtract(left, right)
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=6)]
    exact = np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12)
    result = paired_test(left, right, num_permutations=20_000)
    assert result["test"] == "permutation" and (result["left_better"], result["right_better"]) == (4, 1)
    assert result["p_value"] == pytest.approx(exact, abs=0.015)
    assert paired_test(right, left)["p_value"] == pytest.approx(result["p_value"], abs=0.02)


def test_the_permutation_test_agrees_with_mcnemars_test():
    # Two questions are tied at 1/2 for both methods. They add no flip, and McNemar's counts ignore them.
    left, right = [1] * 9 + [0] * 3 + [0.5] * 2, [0] * 9 + [1] * 3 + [0.5] * 2
    result = paired_test(left, right, num_permutations=20_000)
    assert result["test"] == "permutation"
    assert result["p_value"] == pytest.approx(mcnemar(9, 3), abs=0.012)


@pytest.mark.slow("thousands of simulated comparisons")
def test_the_p_value_is_uniform_under_no_difference():
    rng = np.random.default_rng(0)
    p_values = [
        paired_test(*(rng.integers(0, 5, (2, 30)) / 4), num_permutations=300, seed=seed)["p_value"]
        for seed in range(300)
    ]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def made(seed, num_questions=12, num_samples=5):
    rng = np.random.default_rng(seed)
    correct = rng.integers(0, 2, (num_questions, num_samples))
    rows = [[{"outcome_reward": float(c), "prediction": str(c)} for c in question] for question in correct]
    scores = {
        name: [[rng.random(int(rng.integers(1, 4))).tolist() for _ in question] for question in correct]
        for name in ("first", "second", "third")
    }
    return rows, scores, correct


def test_differences_equal_the_differences_of_the_curves():
    rows, scores, correct = made(0)
    result = paired_differences(rows, scores, [1, 3, 5], aggregations=["min", "last"])
    assert result["reference"] == "first" and list(result["models"]) == ["second", "third"]
    by_last = {
        name: best_of_n_per_question([[steps[-1] for steps in question] for question in model_scores], correct, [3, 5])
        for name, model_scores in scores.items()
    }
    third = result["models"]["third"]["last"]
    low, high = paired_bootstrap_interval(by_last["third"][:, 0], by_last["first"][:, 0])
    mean = (by_last["third"] - by_last["first"])[:, 0].mean()
    assert third["difference"][3] == pytest.approx({"mean": mean, "low": low, "high": high}, abs=1e-12)
    assert third["test"] == paired_test(by_last["third"][:, 1], by_last["first"][:, 1])
    assert third["test"]["test"] == "mcnemar"
    assert third["difference"][1] == pytest.approx({"mean": 0, "low": 0, "high": 0}, abs=1e-12)
    json.dumps(result, allow_nan=False)
    table = format_difference_table(result, 5)
    assert "minus that of first" in table and f"p={third['test']['p_value']:.2g}" in table


def test_ties_between_right_and_wrong_use_the_permutation_test():
    rows, scores, _ = made(1)
    scores["second"] = [[[0.5] for _ in question] for question in rows]
    test = paired_differences(rows, scores, [5])["models"]["second"]["min"]["test"]
    assert test["test"] == "permutation"


def test_a_model_does_not_differ_from_itself():
    rows, scores, _ = made(2)
    result = paired_differences(rows, {"a": scores["first"], "b": scores["first"]}, [1, 5])
    for by_method in result["models"]["b"].values():
        assert by_method["difference"][5] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        assert by_method["test"]["p_value"] == 1.0


def test_a_comparison_needs_two_models():
    rows, scores, _ = made(3)
    with pytest.raises(ValueError, match="Models: got 1, expected at least two"):
        paired_differences(rows, {"a": scores["first"]}, [1])


@pytest.mark.parametrize(
    ("test", "numbers", "message"),
    [
        (paired_test, ([0, 1], [0, 1, 1]), r"`left` .*\(2,\) and `right` \(3,\)"),
        (paired_test, ([0, 1], [0, 2]), "`right` is 2.0 at row 1: expected"),
        (mcnemar, (-1, 2), "expected counts of at least 0"),
    ],
)
def test_errors_name_invalid_arguments(test, numbers, message):
    with pytest.raises(ValueError, match=message):
        test(*numbers)
