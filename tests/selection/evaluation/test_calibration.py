"""Calibration on simulated rollouts with known success rates: values worked by hand, naive loops, noise removal."""

import hashlib
import json
import math

import numpy as np
import pytest

from erprm_trl.report import draw_calibration, format_calibration_table
from erprm_trl.rollouts import RolloutDataset
from erprm_trl.selection import measure_calibration


def write_rollouts(folder, solutions, *, splitter="newline", num_continuations=2):
    """Writes a rollout folder. `solutions[q]` are tuples (steps, rewards of each prefix, outcome) of question q."""
    folder.mkdir(parents=True)
    num_solutions = len(solutions[0])
    config = {"num_questions": len(solutions), "chunk_size": len(solutions), "num_solutions": num_solutions}
    config["num_continuations"] = num_continuations
    (folder / "manifest.json").write_text(json.dumps({"config": {**config, "splitter": splitter}}))
    rows = [
        {
            "chunk": 0,
            "question_index": q,
            "solution_index": n,
            "question": f"question {q}",
            "answer": "1",
            "steps": [f"step {index}\n" for index in range(steps)],
            "outcome_reward": outcome,
            "prediction": "1",
            "finished": True,
            "prefix_rewards": rewards,
            "question_rewards": None,
            "unusable": None if steps else "no steps",
        }
        for q, of_question in enumerate(solutions)
        for n, (steps, rewards, outcome) in enumerate(of_question)
    ]
    (folder / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RolloutDataset(folder)


def simulated_rollouts(folder, num_questions, k, seed=0):
    """Returns rollouts whose prefixes have known success rates, and the rates by question, solution and step."""
    rng = np.random.default_rng(seed)
    solutions, rates = [], []
    for _ in range(num_questions):
        of_question, of_rates = [], []
        for _ in range(2):
            steps = int(rng.integers(2, 5))
            p = rng.beta(0.7, 0.7, size=steps)
            rewards = [[float(r) for r in rng.random(k) < rate] for rate in p[:-1]]
            of_question.append((steps, rewards, float(rng.random() < p[-1])))
            of_rates.append(p.tolist())
        solutions.append(of_question)
        rates.append(of_rates)
    return write_rollouts(folder, solutions), rates


# Question 0: three steps, whose prefixes succeed 1 and 0 of 2 times. Question 1: two steps, 2 of 2 times.
BY_HAND = [[(3, [[1.0, 0.0], [0.0, 0.0]], 0.0)], [(2, [[1.0, 1.0]], 1.0)]]
SCORES = [[[0.7, 0.2, 0.1]], [[0.9, 0.6]]]


def test_measures_worked_by_hand(tmp_path):
    result = measure_calibration(write_rollouts(tmp_path / "r", BY_HAND), SCORES, num_bins=2)
    assert (result["prefixes"], result["questions"]) == (3, 2)
    assert result["continuations"] == {"fewest": 2, "most": 2}
    assert result["mean_score"] == pytest.approx(0.6) and result["mean_label"] == pytest.approx(0.5)
    # (.7 - .5)^2 = .04, (.2 - 0)^2 = .04, (.9 - 1)^2 = .01
    assert result["brier"]["mean"] == pytest.approx(0.03)
    # Lower bin: .2 against 0, weight 1/3. Upper bin: mean .8 against .75, weight 2/3.
    assert result["ece"] == pytest.approx(0.2 / 3 + 0.05 * 2 / 3)
    assert [entry["count"] for entry in result["bins"]] == [1, 2]
    # Can succeed: yes (.7), no (.2), yes (.9). Within question 0: .7 > .2.
    assert result["auc_can_succeed"] == 1.0 and result["auc_can_succeed_within_questions"] == 1.0
    assert [(entry["position"], entry["count"]) for entry in result["by_position"]] == [(1, 2), (2, 1)]
    assert result["by_position"][0]["brier"] == pytest.approx(0.025)
    assert result["by_position"][1]["auc_can_succeed"] is None
    assert [(entry["length"], entry["count"]) for entry in result["by_length"]] == [(2, 1), (3, 2)]
    # Noise: the variance of (1, 0) is 1/2, and divided by K = 2 it is 1/4. The other prefixes have no noise.
    assert result["value_error"]["noise"] == pytest.approx(0.25 / 3)
    assert result["value_error"]["squared_without_noise"]["mean"] == pytest.approx(0.03 - 0.25 / 3)
    assert result["whole_solutions"]["count"] == 2
    assert result["whole_solutions"]["brier"] == pytest.approx((0.1**2 + 0.4**2) / 2)
    json.dumps(result, allow_nan=False)


def test_labels_follow_eta(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", BY_HAND)
    hard = measure_calibration(rollouts, SCORES, eta=math.inf)
    assert hard["mean_label"] == pytest.approx(2 / 3)
    assert hard["value_error"]["method"] is None and hard["value_error"]["squared_without_noise"] is None
    assert hard["eta"] == "inf"
    json.dumps(hard, allow_nan=False)
    soft = measure_calibration(rollouts, SCORES, eta=2.0)
    # log(1 + (e^2 - 1) / 2) / 2 for the first prefix, 0 and 1 for the other prefixes
    assert soft["mean_label"] == pytest.approx((math.log(1 + (math.e**2 - 1) / 2) / 2 + 1) / 3)
    assert "n/a" in format_calibration_table({"prm": hard})


def test_whether_scores_are_success_rates(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", BY_HAND)
    result = measure_calibration(rollouts, SCORES, num_bins=2)
    # .2 against 0 and the mean .8 against .75. The squared error .03 is less than its noise, which is .25 / 3.
    assert result["rates"]["ece"] == pytest.approx(0.1) and result["rates"]["are_rates"] is False
    assert result["rates"]["error"]["mean"] == 0.0
    assert "prm, read at eta = 0: scores are not success rates (error 0.000 [" in format_calibration_table(
        {"prm": result}
    )
    # Scores that are the values of the rates 1/2, 0 and 1, at two etas.
    for eta, half in ((0.0, 0.5), (2.0, math.log(1 + (math.e**2 - 1) / 2) / 2)):
        scores = [[[half, 0.0, 0.3]], [[1.0, 0.6]]]
        right = measure_calibration(rollouts, scores, eta=eta)
        assert right["rates"]["ece"] == pytest.approx(0.0, abs=1e-12) and right["rates"]["are_rates"] is True
        assert "scores are success rates" in format_calibration_table({"prm": right})
        # The same scores taken for values at another eta are not success rates.
        assert measure_calibration(rollouts, scores, eta=eta + 3)["rates"]["are_rates"] is False
    assert measure_calibration(rollouts, SCORES, eta=math.inf)["rates"] is None
    graded = write_rollouts(tmp_path / "graded", [[(2, [[0.5, 0.0]], 0.0)]])
    assert measure_calibration(graded, [[[0.25, 0.1]]])["rates"] is None


def test_the_error_of_success_rates_is_free_of_the_noise_of_continuations(tmp_path):
    rollouts, rates = simulated_rollouts(tmp_path / "r", 1500, k=4)
    off = [[[min(1.0, rate + 0.1) for rate in solution] for solution in question] for question in rates]
    squares = [
        (min(1.0, rate + 0.1) - rate) ** 2 for question in rates for solution in question for rate in solution[:-1]
    ]
    result = measure_calibration(rollouts, off)["rates"]
    expected = math.sqrt(sum(squares) / len(squares))
    # With the noise of four continuations, the error would be twice as large.
    assert result["error"]["mean"] == pytest.approx(expected, abs=0.02) and not result["are_rates"]


def test_measures_of_larger_rollouts_equal_naive_loops(tmp_path):
    rollouts, rates = simulated_rollouts(tmp_path / "r", 60, k=3)
    rng = np.random.default_rng(1)
    scores = [[[float(rng.random()) for _ in solution] for solution in question] for question in rates]
    result = measure_calibration(rollouts, scores)
    flat = [
        (score, sum(rewards) / 3, max(rewards) > 0, q)
        for q, (rows, of_question) in enumerate(zip(rollouts.solutions(), scores, strict=True))
        for row, row_scores in zip(rows, of_question, strict=True)
        for score, rewards in zip(row_scores, row.prefix_rewards, strict=False)
    ]
    parts = result["brier_parts"]
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    whole += parts["within_bin_variance"] - parts["within_bin_covariance"]
    assert whole == pytest.approx(result["brier"]["mean"], abs=1e-14)
    assert result["brier"]["mean"] == pytest.approx(sum((s - y) ** 2 for s, y, _, _ in flat) / len(flat), abs=1e-12)
    assert result["brier"]["low"] < result["brier"]["mean"] < result["brier"]["high"]
    for key, same in (("auc_can_succeed", False), ("auc_can_succeed_within_questions", True)):
        wins = [
            (a > b) + (a == b) / 2
            for a, _, yes, q in flat
            for b, _, no, r in flat
            if yes and not no and (q == r or not same)
        ]
        assert result[key] == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    assert sum(entry["count"] for entry in result["by_position"]) == len(flat)
    assert sum(entry["count"] * entry["brier"] for entry in result["by_length"]) / len(flat) == pytest.approx(
        result["brier"]["mean"], abs=1e-12
    )


@pytest.mark.slow("thousands of simulated rollouts")
@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_value_error_removes_the_noise(tmp_path, eta):
    """With the true value as the score, the measured error is only the noise of K = 6, which is removed."""
    rollouts, rates = simulated_rollouts(tmp_path / "r", 400, k=6)
    values = [
        [[math.log1p(p * math.expm1(eta)) / eta if eta else p for p in solution] for solution in question]
        for question in rates
    ]
    error = measure_calibration(rollouts, values, eta=eta)["value_error"]
    assert error["squared"]["low"] > 0.01
    assert error["squared_without_noise"]["low"] < 0.001 + 0.002 * (eta != 0)  # the bootstrap is approximate at K = 6
    assert abs(error["squared_without_noise"]["mean"]) < 0.15 * error["squared"]["mean"]
    rate = error["success_rate_without_noise"]
    assert rate["low"] < 0 < rate["high"]
    off = [
        [[min(1.0, v + 0.1) if v < 0.5 else v - 0.1 for v in solution] for solution in question] for question in values
    ]
    moved = measure_calibration(rollouts, off, eta=eta)["value_error"]["squared_without_noise"]
    assert moved["low"] < 0.01 < moved["high"] or moved["mean"] == pytest.approx(0.01, abs=0.002)


def test_recalibration_improves_overconfident_scores(tmp_path):
    rollouts, rates = simulated_rollouts(tmp_path / "r", 300, k=16)
    sure = [[[1 / (1 + ((1 - p) / p) ** 4) for p in solution] for solution in question] for question in rates]
    result = measure_calibration(rollouts, sure)
    assert result["recalibration"]["ece"] < 0.6 * result["ece"]
    assert result["recalibration"]["brier"]["mean"] < result["brier"]["mean"]
    assert all(fit["scale"] < 0.5 for fit in result["recalibration"]["fits"])
    fair = measure_calibration(rollouts, rates)
    assert all(fit["scale"] == pytest.approx(1.0, abs=0.25) for fit in fair["recalibration"]["fits"])


def test_recalibration_is_fitted_on_the_other_half(tmp_path):
    """One half of the questions always succeeds, and the other half never does, so that a fit on one half is wrong on
    the other half. A fit on the same half would almost remove the error."""
    halves = [hashlib.sha256(f"question {q}".encode()).digest()[0] % 2 for q in range(12)]
    rollouts = write_rollouts(tmp_path / "r", [[(2, [[float(half)] * 2], 0.0)] for half in halves])
    result = measure_calibration(rollouts, [[[0.5, 0.5]] for _ in halves])
    assert result["brier"]["mean"] == 0.25 and result["recalibration"]["brier"]["mean"] > 0.9


def test_aggregated_scores_are_compared_for_other_aggregations(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", [[(3, [[1.0], [0.0]], 0.0)], [(2, [[1.0]], 1.0)]])
    scores = [[[0.4, 0.8, 0.1]], [[0.5, 0.9]]]
    last = measure_calibration(rollouts, scores)
    assert last["by_position"][1]["mean_score"] == 0.8 and last["auc_can_succeed"] == 0.0
    by_min = measure_calibration(rollouts, scores, aggregation="min")
    assert by_min["by_position"][1]["mean_score"] == 0.4 and by_min["auc_can_succeed"] == 0.75
    assert by_min["whole_solutions"]["mean_score"] == pytest.approx((0.1 + 0.5) / 2)
    assert by_min["value_error"]["squared_without_noise"] is None  # a single continuation
    with pytest.raises(ValueError, match="Aggregation: got 'max'"):
        measure_calibration(rollouts, scores, aggregation="max")


def test_prefixes_may_have_different_numbers_of_continuations(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", [[(3, [[1.0, 0.0], [0.0, 0.0, 1.0, 0.0]], 0.0)]])
    result = measure_calibration(rollouts, [[[0.5, 0.25, 0.0]]])
    assert result["continuations"] == {"fewest": 2, "most": 4}
    assert result["brier"]["mean"] == 0.0
    assert result["recalibration"]["ece"] is None  # a single question has no other half


def test_collections_without_continuations_compare_whole_solutions(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", [[(3, [], 0.0), (1, [], 1.0)]], num_continuations=0)
    result = measure_calibration(rollouts, [[[0.9, 0.5, 0.25], [0.75]]], eta=2.0)
    assert (result["unit"], result["prefixes"], result["continuations"]) == ("solution", 2, {"fewest": 1, "most": 1})
    assert result["brier"]["mean"] == pytest.approx(0.25**2) and result["mean_label"] == 0.5
    assert result["auc_can_succeed_within_questions"] == 1.0
    assert result["value_error"]["squared_without_noise"] is None
    assert "2 solutions of 1 question, rewards, scores by last" in format_calibration_table({"prm": result})
    ungraded = write_rollouts(tmp_path / "u", [[(3, [], None)]], num_continuations=0)
    with pytest.raises(ValueError, match="got question 0, solution 0 without a reward and no continuations"):
        measure_calibration(ungraded, [[[0.9, 0.5, 0.25]]])


def test_adaptive_collections_are_refused(tmp_path):
    rollouts = write_rollouts(tmp_path / "r", [[(2, [[1.0, 0.0]], 0.0)]])
    rollouts.manifest["config"]["reuse_continuations"] = True
    with pytest.raises(
        ValueError, match="does not depend on their rewards. Collect held-out rollouts with allocation='fixed'"
    ):
        measure_calibration(rollouts, [[[0.5, 0.25]]])


def test_the_plot_and_the_table_show_the_calibration(tmp_path):
    rollouts, rates = simulated_rollouts(tmp_path / "r", 40, k=8)
    result = measure_calibration(rollouts, rates)
    figure = draw_calibration({"the truth": result, "twice": result}, title="made rollouts")
    figure.savefig(tmp_path / "calibration.svg")
    diagram, by_position, histogram, ranking = figure.axes
    assert figure.legends[0].get_texts()[1].get_text() == f"the truth (ECE {result['ece']:.3f})"
    drawn = diagram.lines[1].get_ydata()
    assert list(drawn) == [entry["mean_label"] for entry in result["bins"] if entry["count"]]
    assert list(by_position.lines[0].get_xdata()) == [1, 2, 3]
    table = format_calibration_table({"the truth": result})
    assert "8 continuations each, value at eta = 0.0, scores by last" in table and f"{result['ece']:.4f}" in table


@pytest.mark.parametrize(
    ("solutions", "scores", "message"),
    [
        ([[(3, [], 0.0)]], [[[0.1] * 3]], "question 0, solution 0 has 3 steps and rewards for 0 prefixes"),
        ([[(1, [], 0.0)]], [[[0.1]]], "got no prefix with continuations"),
        (BY_HAND, SCORES[:1], "got scores of 1 solutions of 1 questions, expected 2 solutions of 2 questions"),
        (BY_HAND, [SCORES[0], [[0.9]]], "got 1 for question 1, solution 0 with 2 steps"),
        ([[(2, [[3.0, 0.0]], 0.0)]], [[[0.1, 0.2]]], "`labels` is 1.5 at flat index 0"),
    ],
)
def test_errors_name_invalid_rollouts_and_scores(tmp_path, solutions, scores, message):
    with pytest.raises(ValueError, match=message):
        measure_calibration(write_rollouts(tmp_path / "r", solutions), scores)
