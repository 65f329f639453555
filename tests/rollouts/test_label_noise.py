"""The noise of labels that is visible without the truth, worked by hand."""

import math

import pytest
from rollout_folders import write_rollouts

from erprm_trl.rollouts.label_noise import measure_label_noise


# With K = 4, one half has the rewards at places 0 and 2, the other half those at 1 and 3.
SOLUTIONS = [
    [(1.0, [1, 0, 1, 0], [0, 0, 0, 0]), (0.0, [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0])],
    [(0.0, [0, 1, 0, 1]), (0.0,)],
]


@pytest.fixture
def rollouts(tmp_path):
    return write_rollouts(tmp_path / "rollouts", SOLUTIONS)


def test_counts_and_repeated_labels(rollouts):
    noise = measure_label_noise(rollouts)
    assert [noise[key] for key in ("eta", "solutions", "right", "wrong", "prefixes")] == [0.0, 4, 1, 3, 6]
    # halves: (1, 0), (0, 0), (1, 1), (0, 0), (0, 1/2), (0, 1)
    repeated = noise["repeated"]
    expected = math.sqrt((1 + 0 + 0 + 0 + 0.25 + 1) / 6)
    assert repeated["prefixes"] == 6 and repeated["rms_difference"] == pytest.approx(expected)
    assert repeated["label_error"] == pytest.approx(expected / 2)
    assert repeated["hard_disagreement"] == 3 / 6
    assert repeated["pairs"] == [[0.0, 0.0, 2], [0.0, 0.5, 1], [0.0, 1.0, 1], [1.0, 0.0, 1], [1.0, 1.0, 1]]


def test_right_and_wrong_solutions(rollouts):
    noise = measure_label_noise(rollouts)
    assert noise["right_solutions"] == {"failing_prefixes": 1 / 2, "with_failing_prefix": 1.0}
    # rates of the wrong solution with several prefixes: 1, 0, 1/4. One of two changes is a rise, after a failure.
    assert noise["wrong_solutions"] == {"rises": 1 / 2, "revived": 1 / 3}
    # question 0: the mean of (1 + 2) / 5 and (0 + 4) / 5; question 1: the mean of (0 + 2) / 5 and 0 / 1
    assert noise["questions"] == {
        "questions": 2,
        "rate": pytest.approx((0.7 + 0.2) / 2),
        "below": {"0.05": 0.0, "0.1": 0.0, "0.25": 0.5},
    }


def test_certain_labels_by_position(rollouts):
    first, second, third = measure_label_noise(rollouts)["by_position"]
    assert first == {
        "position": 1,
        "or_more": False,
        "prefixes": 3,
        "certain_failure": 0.0,
        "certain_success": 1 / 3,
        "right": 0.5,
        "wrong": 0.75,
    }
    assert (second["certain_failure"], second["certain_success"], second["wrong"]) == (1.0, 0.0, 0.0)
    assert (third["prefixes"], third["right"], third["wrong"]) == (1, None, 0.25)


def test_long_prefixes_count_together(tmp_path):
    rollouts = write_rollouts(tmp_path / "long", [[(0.0, *[[0, 1]] * 12)], [(0.0, *[[1, 1]] * 14)]])
    points = measure_label_noise(rollouts)["by_position"]
    assert [point["prefixes"] for point in points] == [2] * 11 + [4]
    assert points[-1]["or_more"] and points[-1]["certain_success"] == 3 / 4 and not points[-2]["or_more"]


def test_labels_at_infinite_eta_have_no_standard_error(rollouts):
    noise = measure_label_noise(rollouts, math.inf)
    assert noise["eta"] == "inf" and noise["repeated"]["label_error"] is None
    assert noise["repeated"]["rms_difference"] == pytest.approx(math.sqrt(3 / 6))


def test_the_standard_error_is_right_for_known_rates(tmp_path):
    """Rewards of prefixes with success rate 0.3 and K = 4: a label has the variance 0.3 * 0.7 / 4."""
    import random

    rng = random.Random(0)
    prefixes = [[float(rng.random() < 0.3) for _ in range(4)] for _ in range(4000)]
    noise = measure_label_noise(write_rollouts(tmp_path / "many", [[(0.0, *prefixes)]]))
    assert noise["repeated"]["label_error"] == pytest.approx(math.sqrt(0.3 * 0.7 / 4), rel=0.05)


def test_an_error_without_continuations(tmp_path):
    with pytest.raises(ValueError, match="got no rewards of continuations.*num_continuations >= 1"):
        measure_label_noise(write_rollouts(tmp_path / "none", [[(0.0,), (1.0,)]]))
