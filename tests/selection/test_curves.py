"""The comparison as a whole, against hand-worked solutions."""

import json

import pytest

from erprm_trl.report import format_selection_table, plot_selection_curves
from erprm_trl.selection import selection_curves


def row(answer, reward):
    return {"prediction": answer, "outcome_reward": reward}


# Two questions with three solutions. Scores by min: question 1 picks the second (right), question 2 the first (wrong).
SOLUTIONS = [[row("3", 0.0), row("4", 1.0), row("3", 0.0)], [row("7", 0.0), row("8", 1.0), row("8.0", 1.0)]]
SCORES = {"prm": [[[0.9, 0.2], [0.5, 0.6], [0.1]], [[0.9, 0.8], [0.7, 0.9], []]]}


def test_by_hand():
    curves = selection_curves(SOLUTIONS, SCORES, [1, 3], equivalent=lambda a, b: float(a) == float(b))
    assert curves["pass"][1]["mean"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert curves["pass"][3]["mean"] == 1.0
    assert curves["majority"][3]["mean"] == 0.5  # 3, 3 against 4: wrong; 8 and 8.0 against 7: right
    prm = curves["models"]["prm"]
    assert prm["min"]["best_of_n"][3]["mean"] == 0.5
    assert prm["last"]["best_of_n"][3]["mean"] == 1.0  # 0.6 of 0.2, 0.6, 0.1; 0.9 of 0.8, 0.9
    # question 1: right 0.5 against 0.2 and 0.1: 2 of 2; question 2: right 0.7 and -inf against 0.8: 0 of 2
    assert prm["min"]["auc_within_questions"] == pytest.approx(0.5)
    # weights by min, question 1: 0.5 for 4 against 0.2 + 0.1; question 2: 0.8 for 7 against 0.7 + 0
    assert prm["min"]["weighted_majority"][3]["mean"] == 0.5
    for point in (curves["pass"][1], prm["min"]["best_of_n"][3]):
        assert point["low"] <= point["mean"] <= point["high"]


def test_without_equivalence_votes_count_spellings():
    curves = selection_curves(SOLUTIONS, SCORES, [3])
    assert curves["majority"][3]["mean"] == pytest.approx((0 + 2 / 3) / 2)


def test_without_right_and_wrong_there_is_no_auc():
    curves = selection_curves([[row("3", 0.0), row("4", 0.0)]], {"prm": [[[0.9], [0.5]]]}, [1, 2])
    assert curves["models"]["prm"]["min"]["auc_within_questions"] is None
    assert "n/a" in format_selection_table(curves, 2)
    json.dumps(curves, allow_nan=False)


def test_table_and_plot(tmp_path):
    curves = selection_curves(SOLUTIONS, SCORES, [1, 3])
    table = format_selection_table(curves, 3)
    assert "majority@3" in table and "prm" in table and "0.500 [" in table
    for name in ("plot.png", "plot.svg"):
        plot_selection_curves(curves, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    svg = (tmp_path / "plot.svg").read_text()
    assert svg.count("<path") > 10
