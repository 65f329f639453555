"""Exponential weights worked by hand, and systematic resampling compared with exact counting."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from erprm_trl.functional import soft_value
from erprm_trl.selection.search.particles import (
    effective_sample_size,
    log_mean_exp,
    systematic_resample,
    tilted_probabilities,
)


def test_tilted_probabilities_worked_by_hand():
    # e^(2 * 0.5) : e^0 = e : 1
    assert tilted_probabilities([0.5, 0.0], 2.0) == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert tilted_probabilities([0.3, 0.9, 0.9], math.inf).tolist() == [0, 0.5, 0.5]
    assert tilted_probabilities([0.3, 0.9, 0.3], -math.inf).tolist() == [0.5, 0, 0.5]
    assert tilted_probabilities([5.0, 7.0], 0.0).tolist() == [0.5, 0.5]
    assert tilted_probabilities([1.0, 1.001], 1e6) == pytest.approx([0, 1])  # no overflow


def test_effective_sample_size_worked_by_hand():
    # weights 3/4 and 1/4: 1 / (9/16 + 1/16) = 1.6. Constant factors cancel.
    for shift in (0.0, 1e4, -1e4):
        assert effective_sample_size(np.log([3.0, 1.0]) + shift) == pytest.approx(1.6)
    assert effective_sample_size(np.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([0.0, -1e3, -1e3])) == pytest.approx(1)
    assert log_mean_exp(np.array([1000.0, 1000.0 + math.log(3)])) == pytest.approx(1000 + math.log(2))


def naive_systematic(weights, offset):
    """Exact number of points (offset + k) / N in each particle's interval of [0, 1)."""
    total, n, lower, chosen = sum(weights), len(weights), Fraction(0), []
    for index, weight in enumerate(weights):
        upper = lower + Fraction(weight, total)
        chosen += [index] * sum(lower <= (offset + k) / n < upper for k in range(n))
        lower = upper
    return chosen


@pytest.mark.parametrize("weights", [(1, 2, 5), (0, 3, 0, 1, 0), (7,), (1, 1, 1, 1, 1, 1, 3), (5, 0, 0)])
def test_systematic_resampling_equals_exact_counting(weights):
    log_weights = np.array([math.log(weight) if weight else -math.inf for weight in weights])
    counts = np.zeros(len(weights))
    for k in range(997):  # 997 is prime, so no point is on a border, where floats and fractions may differ
        offset = Fraction(2 * k + 1, 2 * 997)
        chosen = systematic_resample(log_weights, float(offset))
        assert chosen.tolist() == naive_systematic(weights, offset)
        counts += np.bincount(chosen, minlength=len(weights)) / 997
    assert counts == pytest.approx(np.array(weights) / sum(weights) * len(weights), abs=0.01)


def test_systematic_resampling_never_exceeds_the_last_index():
    weights = np.log(np.full(10, 0.1))
    assert systematic_resample(weights, np.nextafter(1.0, 0)).max() == 9
    assert systematic_resample(np.array([-np.inf, 0.0]), 0.0).tolist() == [1, 1]
    ends_empty = np.append(weights, -np.inf)
    assert systematic_resample(ends_empty, np.nextafter(1.0, 0)).max() == 9


def test_log_mean_exp_is_the_soft_value_at_eta_1():
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 300.0):
        log_weights = rng.normal(size=9) * scale
        expected = soft_value(torch.from_numpy(log_weights), 1.0).item()
        assert log_mean_exp(log_weights) == pytest.approx(expected, rel=1e-12, abs=1e-12)
