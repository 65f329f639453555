"""Bootstrap intervals: limits, coverage compared with theory, and the gain from pairing."""

import numpy as np
import pytest

from erprm_trl.selection import bootstrap
from erprm_trl.selection.bootstrap import (
    bootstrap_interval,
    mean_and_interval,
    middle_quantiles,
    paired_bootstrap_interval,
    percentile_interval,
)


def test_two_questions_worked_by_hand():
    # Resamples of (0, 1): means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4. The middle 40% (quantiles 0.3 to 0.7) is
    # all 1/2; the middle 80% (quantiles 0.1 to 0.9) reaches 0 and 1.
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], level=0.8) == (0.0, 1.0)


def test_constant_values_and_a_single_question_give_a_point():
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)
    assert bootstrap_interval([0.7]) == (0.7, 0.7)


def test_width_equals_the_normal_approximation():
    # Mean of 400 coin flips: sd sqrt(1/4 / 400) = 0.025, so 0.5 +- 1.96 * 0.025 = (0.451, 0.549).
    lower, upper = bootstrap_interval([0.0, 1.0] * 200)
    assert (lower, upper) == pytest.approx((0.451, 0.549), abs=0.006)
    narrow = bootstrap_interval([0.0, 1.0] * 200, level=0.5)
    assert narrow == pytest.approx((0.5 - 0.6745 * 0.025, 0.5 + 0.6745 * 0.025), abs=0.006)


def test_coverage_of_the_true_mean_is_about_the_level():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        lower, upper = bootstrap_interval(rng.random(60) < 0.3, level=0.9, num_resamples=300, seed=seed)
        hits += lower <= 0.3 <= upper
    assert 165 <= hits <= 195  # 200 draws at 0.9: sd 4.2


def test_resampling_in_chunks_estimates_the_same_interval(monkeypatch):
    values = np.random.default_rng(0).random(300)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(bootstrap, "_MAX_NUMBERS", 700)  # two resamples at a time
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.004)
    monkeypatch.setattr(bootstrap, "_MAX_NUMBERS", 1)  # less than one resample: chunks of one resample
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values.tolist(), seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_pairing_cancels_the_difficulty_of_questions():
    rng = np.random.default_rng(0)
    right = rng.random(100)
    # With the same difference on every question, the interval is a point, even if the questions differ.
    assert paired_bootstrap_interval(right + 0.125, right) == pytest.approx((0.125, 0.125), abs=1e-15)
    left = right + rng.normal(0.05, 0.01, 100)
    lower, upper = paired_bootstrap_interval(left, right)
    assert lower > 0
    assert (lower, upper) == bootstrap_interval(left - right)
    flipped = paired_bootstrap_interval(right, left)
    assert flipped == pytest.approx((-upper, -lower), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_question": []}, r"`per_question` has shape \(0,\): expected one value per question"),
        ({"per_question": [[0.1, 0.2]]}, r"`per_question` has shape \(1, 2\)"),
        ({"per_question": [0.1, float("nan")]}, "`per_question` is nan at row 1: expected finite numbers"),
        ({"per_question": [0.1], "level": 95}, "`level` is 95: expected a fraction strictly between 0 and 1"),
        ({"per_question": [0.1], "num_resamples": 0}, "`num_resamples` is 0: expected at least 1"),
    ],
)
def test_errors_name_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


def test_pairs_need_the_same_questions():
    with pytest.raises(ValueError, match="`left` has 2 values and `right` has 3"):
        paired_bootstrap_interval([0.1, 0.2], [0.1, 0.2, 0.3])


def test_the_interval_of_resamples_worked_by_hand():
    resampled = np.arange(101.0)[::-1]
    assert percentile_interval(resampled, (0.1, 0.9)) == pytest.approx((10.0, 90.0))
    assert mean_and_interval(np.float64(50.0), resampled, (0.25, 0.5)) == {"mean": 50.0, "low": 25.0, "high": 50.0}
    assert middle_quantiles(0.5) == (0.25, 0.75)
    assert all(type(value) is float for value in mean_and_interval(np.float64(1.0), resampled, (0.1, 0.9)).values())
