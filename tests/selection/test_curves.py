"""The curves of all selection methods, compared with values worked by hand and with brute force."""

import itertools
import json
import math

import numpy as np
import pytest

from erprm_trl.report import format_selection_table, plot_selection_curves
from erprm_trl.selection import paired_differences, selection_curves


def row(answer, reward):
    return {"prediction": answer, "outcome_reward": reward}


# Two questions with three solutions. By min, question 1 selects the second solution (right), 2 the first (wrong).
SOLUTIONS = [[row("3", 0.0), row("4", 1.0), row("3", 0.0)], [row("7", 0.0), row("8", 1.0), row("8.0", 1.0)]]
SCORES = {"prm": [[[0.9, 0.2], [0.5, 0.6], [0.1]], [[0.9, 0.8], [0.7, 0.9], []]]}


def test_curves_worked_by_hand():
    curves = selection_curves(SOLUTIONS, SCORES, [1, 3], equivalent=lambda a, b: float(a) == float(b))
    assert curves["pass"][1]["mean"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert curves["pass"][3]["mean"] == 1.0
    assert curves["majority"][3]["mean"] == 0.5  # 3, 3 win against 4: wrong. 8 and 8.0 win against 7: right.
    prm = curves["models"]["prm"]
    assert prm["min"]["best_of_n"][3]["mean"] == 0.5
    assert prm["last"]["best_of_n"][3]["mean"] == 1.0  # the best is 0.6 of 0.2, 0.6, 0.1, and 0.9 of 0.8, 0.9
    # question 1: right 0.5 against 0.2 and 0.1: 2 of 2 pairs. Question 2: right 0.7 and -inf against 0.8: 0 of 2.
    assert prm["min"]["auc_within_questions"] == pytest.approx(0.5)
    # weights by min: question 1 has 0.5 for 4 against 0.2 + 0.1, question 2 has 0.8 for 7 against 0.7 + 0
    assert prm["min"]["weighted_majority"][3]["mean"] == 0.5
    for point in (curves["pass"][1], prm["min"]["best_of_n"][3]):
        assert point["low"] <= point["mean"] <= point["high"]


def test_without_equivalence_different_spellings_are_different_answers():
    curves = selection_curves(SOLUTIONS, SCORES, [3])
    assert curves["majority"][3]["mean"] == pytest.approx((0 + 2 / 3) / 2)


def test_the_auc_is_none_without_right_and_wrong_solutions():
    curves = selection_curves([[row("3", 0.0), row("4", 0.0)]], {"prm": [[[0.9], [0.5]]]}, [1, 2])
    assert curves["models"]["prm"]["min"]["auc_within_questions"] is None
    assert "n/a" in format_selection_table(curves, 2)
    json.dumps(curves, allow_nan=False)


def test_the_table_and_the_plot_show_the_curves(tmp_path):
    curves = selection_curves(SOLUTIONS, SCORES, [1, 3])
    table = format_selection_table(curves, 3)
    assert "majority@3" in table and "prm" in table and "0.500 [" in table
    for name in ("plot.png", "plot.svg"):
        plot_selection_curves(curves, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    svg = (tmp_path / "plot.svg").read_text()
    assert svg.count("<path") > 10


def random_solutions(seed, num_questions, num_samples):
    """Answers 0 to 3, where 0 is right and some are missing. Step scores are multiples of 1/16, so some are tied."""
    rng = np.random.default_rng(seed)
    solutions, scores = [], []
    for _ in range(num_questions):
        answers = rng.choice([None, "0", "1", "2", "3"], size=num_samples, p=[0.1, 0.4, 0.2, 0.2, 0.1])
        solutions.append([row(answer, float(answer == "0")) for answer in answers])
        scores.append([(rng.integers(1, 17, int(rng.integers(1, 5))) / 16).tolist() for _ in answers])
    return solutions, scores


HOW = {
    "min": min,
    "last": lambda steps: steps[-1],
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
}


def accuracy_in(subset, rows, scores):
    """Correctness of the best solution, the vote and the weighted vote in a subset, and whether it has a right one."""
    right = [rows[i]["outcome_reward"] for i in subset]
    top = max(scores[i] for i in subset)
    winners = [rows[i]["outcome_reward"] for i in subset if abs(scores[i] - top) < 1e-7]
    votes = {"weighted": {}, "majority": {}}
    for i in subset:
        answer = rows[i]["prediction"]
        if answer is not None:
            votes["weighted"][answer] = votes["weighted"].get(answer, 0) + scores[i]
            votes["majority"][answer] = votes["majority"].get(answer, 0) + 1
    won = {}
    for name, weight in votes.items():
        best = [answer for answer in weight if abs(weight[answer] - max(weight.values())) < 1e-6]
        won[name] = best.count("0") / len(best) if best else 0.0
    return np.array([sum(winners) / len(winners), won["weighted"], won["majority"], max(right)])


def curve_means(curves, method, n):
    by = curves["models"]["prm"][method]
    return [
        curve[n]["mean"] for curve in (by["best_of_n"], by["weighted_majority"], curves["majority"], curves["pass"])
    ]


@pytest.mark.parametrize("method", ["min", "last", "product", "mean"])
def test_every_curve_is_the_mean_over_every_subset(method):
    """All n from 1 to N = 7 in one call, compared with plain Python over every subset."""
    solutions, scores = random_solutions(0, 4, 7)
    curves = selection_curves(solutions, {"prm": scores}, range(1, 8))
    for n in range(1, 8):
        expected = np.mean(
            [
                accuracy_in(subset, rows, [HOW[method](steps) for steps in of_question])
                for rows, of_question in zip(solutions, scores, strict=True)
                for subset in itertools.combinations(range(7), n)
            ],
            axis=0,
        )
        assert curve_means(curves, method, n) == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow("a million resamples")
def test_every_curve_agrees_with_a_million_resamples():
    """N = 40 samples of one question with n = 4, 11 and 25, by min. The tolerance is four standard errors, including
    the error of the weighted vote's own sampled subsets."""
    solutions, scores = random_solutions(3, 1, 40)
    ns, total = [4, 11, 25], 1_000_000
    curves = selection_curves(solutions, {"prm": scores}, ns, num_subsets=200_000)
    answers = np.array(
        [-1 if solution["prediction"] is None else int(solution["prediction"]) for solution in solutions[0]]
    )
    value = np.array([min(steps) for steps in scores[0]])
    rng, sums = np.random.default_rng(0), np.zeros((len(ns), 4))
    one_hot = (answers[:, None] == np.arange(4)).astype(np.float32)
    for _ in range(total // 50_000):
        order = rng.random((50_000, 40), dtype=np.float32).argsort(axis=1)
        for index, n in enumerate(ns):
            inside = np.zeros((50_000, 40), dtype=np.float32)
            np.put_along_axis(inside, order[:, :n], 1.0, axis=1)
            best = np.where(inside > 0, value, -1).max(axis=1, keepdims=True)
            winners = (inside > 0) & (value == best)
            counts, weights = inside @ one_hot, inside @ (one_hot * value[:, None].astype(np.float32))
            sums[index, 0] += ((winners & (answers == 0)).sum(1) / winners.sum(1)).sum()
            for column, votes in ((1, weights), (2, counts)):
                tied = (np.abs(votes - votes.max(1, keepdims=True)) < 1e-4) & (counts > 0)
                sums[index, column] += (tied[:, 0] / np.maximum(tied.sum(1), 1)).sum()
            sums[index, 3] += (counts[:, 0] > 0).sum()
    for index, n in enumerate(ns):
        error = np.sqrt(0.25 / total) * np.array([4, 4 * np.sqrt(1 + total / 200_000), 4, 4])
        assert (np.abs(curve_means(curves, "min", n) - sums[index] / total) < error).all()


def test_a_string_of_aggregations_instead_of_a_list_is_an_error():
    with pytest.raises(TypeError, match="aggregations: got the str 'min', expected a list of strings"):
        selection_curves(SOLUTIONS, SCORES, [1], aggregations="min")
    with pytest.raises(TypeError, match="aggregations: got the str 'last'"):
        paired_differences(SOLUTIONS, SCORES | {"other": SCORES["prm"]}, [1], aggregations="last")
