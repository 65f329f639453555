"""Tests noise-free errors against exact expectations over all draws, and recalibration against known distortions."""

import itertools
import math

import pytest
import torch

from erprm_trl.functional.soft_values import soft_value_from_rate
from erprm_trl.functional.value_noise import (
    bootstrap_value_noise,
    fit_recalibration,
    recalibrate,
    squared_error_without_noise,
)


def test_the_squared_error_by_hand():
    # Score 0.5, rewards 1, 1, 0, 0: mean 1/2, squared distance 0, variance (4 * 1/4) / 3 = 1/3, over K = 1/12.
    # Score 1, rewards 1, 0: (1 - 1/2)^2 - (1/2) / 2 = 0.
    assert squared_error_without_noise(torch.tensor([0.5]), torch.tensor([[1.0, 1, 0, 0]])).item() == pytest.approx(
        -1 / 12
    )
    assert squared_error_without_noise(torch.tensor([1.0]), torch.tensor([[1, 0]])).item() == pytest.approx(0.0)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("k", [2, 5])
def test_the_squared_error_is_unbiased(p, k):
    """The expectation over all 2^K outcomes is exactly (score - p)^2. The plain squared difference is larger by
    p (1 - p) / K."""
    expected, plain = 0.0, 0.0
    for draw in itertools.product([0.0, 1.0], repeat=k):
        probability = p ** sum(draw) * (1 - p) ** (k - sum(draw))
        expected += probability * squared_error_without_noise(torch.tensor([0.4]), torch.tensor([draw])).item()
        plain += probability * (0.4 - sum(draw) / k) ** 2
    score = torch.tensor(0.4).item()
    assert expected == pytest.approx((score - p) ** 2, abs=1e-9)
    assert plain == pytest.approx((0.4 - p) ** 2 + p * (1 - p) / k, abs=1e-12)


@pytest.mark.slow("40,000 resamples")
def test_the_bootstrap_against_every_resample():
    # Rewards 1, 0, 0: V of a resample depends on its number j of ones, j ~ Binomial(3, 1/3); K / (K - 1) = 1.5.
    eta, rewards = 2.0, torch.tensor([[1.0, 0.0, 0.0]])
    probabilities = [math.comb(3, j) * (1 / 3) ** j * (2 / 3) ** (3 - j) for j in range(4)]
    values = soft_value_from_rate(torch.arange(4, dtype=torch.float64) / 3, eta).tolist()
    mean = sum(p * v for p, v in zip(probabilities, values, strict=True))
    variance = sum(p * (v - mean) ** 2 for p, v in zip(probabilities, values, strict=True))
    bias, spread = bootstrap_value_noise(rewards, eta, num_resamples=40_000)
    assert bias.item() == pytest.approx(1.5 * (mean - values[1]), abs=0.008)
    assert spread.item() == pytest.approx(1.5 * variance, rel=0.03)


def test_the_bootstrap_at_eta_0_is_the_variance_of_the_mean():
    rewards = (torch.rand(40, 8, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    bias, variance = bootstrap_value_noise(rewards, 0.0, num_resamples=4000)
    assert bias.abs().max() < 0.02
    exact = rewards.var(-1) / 8
    torch.testing.assert_close(variance, exact, rtol=0.12, atol=1e-12)
    again = bootstrap_value_noise(rewards, 0.0, num_resamples=4000)
    assert torch.equal(again[1], variance)


def test_equal_rewards_have_no_noise():
    bias, variance = bootstrap_value_noise(torch.ones(2, 4), 3.0)
    assert bias.tolist() == variance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        (lambda: squared_error_without_noise(torch.zeros(2), torch.zeros(2, 1)), "`rewards` has 1 .*at least 2"),
        (
            lambda: squared_error_without_noise(torch.zeros(3), torch.zeros(2, 4)),
            r"`scores` .*\(3,\) and `rewards` \(2, 4\)",
        ),
        (lambda: bootstrap_value_noise(torch.zeros(2, 4), math.inf), "`eta` is inf: expected a finite number"),
        (
            lambda: bootstrap_value_noise(torch.zeros(2, 4), 1.0, num_resamples=1),
            "`num_resamples` is 1: .*at least 2",
        ),
    ],
)
def test_errors_name_inputs_without_a_noise_estimate(estimate, message):
    with pytest.raises(ValueError, match=message):
        estimate()


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (0.4, 0.0), (2.5, 0.0), (1.0, -1.5), (0.6, 2.0), (-1.0, 0.5)]
)
def test_a_known_distortion_is_undone(scale, shift):
    p = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    distorted = ((p.logit() - shift) / scale).sigmoid()
    fitted = fit_recalibration(distorted, p, penalty=0.0)
    assert fitted == pytest.approx((scale, shift), abs=1e-6)
    torch.testing.assert_close(recalibrate(distorted, *fitted), p, atol=1e-6, rtol=0)


def test_constant_scores_give_the_mean():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    fitted = fit_recalibration(torch.full((4,), 0.9), labels, penalty=1e-9)
    assert recalibrate(torch.tensor(0.9), *fitted).item() == pytest.approx(0.25, abs=1e-4)


def test_the_gradient_vanishes_on_hard_labels():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(300, generator=generator, dtype=torch.float64)
    labels = (torch.rand(300, generator=generator) < 0.5 * scores).double()
    scale, shift = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in fit_recalibration(scores, labels)
    )
    p = (scale * torch.log(scores / (1 - scores)) + shift).sigmoid()
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss = loss + 0.0005 * ((scale - 1) ** 2 + shift**2)
    for gradient in torch.autograd.grad(loss, [scale, shift]):
        assert abs(gradient.item()) < 1e-7


def test_perfectly_separated_scores_stay_finite():
    scores = torch.tensor([0.0, 0.1, 0.9, 1.0])
    scale, shift = fit_recalibration(scores, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert 1.0 < scale < 100.0 and abs(shift) < 0.1
    recalibrated = recalibrate(scores, scale, shift)
    assert recalibrated.isfinite().all() and (recalibrated.diff() > 0).all()
