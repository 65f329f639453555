"""Tests posteriors of values against closed forms, plain quadrature and full enumeration. No expected value comes from
the module itself."""

import math

import numpy as np
import pytest
import torch

from erprm_trl.functional import (
    expected_change,
    fit_beta_prior,
    posterior_value,
    precision_weights,
    soft_value,
    soft_value_from_rate,
    success_counts,
)


ETAS = (-3.0, 0.0, 0.5, 2.0, 10.0)


def value(p, eta):
    return p if eta == 0 else math.log1p(p * math.expm1(eta)) / eta


def beta_binomial(a, b, s, f):
    """Probability of one particular order of s successes and f failures."""
    log = math.lgamma(a + s) + math.lgamma(b + f) - math.lgamma(a + b + s + f)
    return math.exp(log - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b))


def floats(function, successes, failures, *arguments):
    """Calls a tensor function with the counts of a single prefix, and returns its results as floats."""
    return [result.item() for result in function(torch.tensor([successes]), torch.tensor([failures]), *arguments)]


@pytest.mark.parametrize("prior", [(0.02, 0.02), (0.3, 2.0), (1000.0, 40.0)])
@pytest.mark.parametrize("counts", [(0.0, 0.0), (3.0, 0.0), (0.0, 500.0), (2.5, 13.5)])
def test_at_eta_0_the_posterior_is_the_beta_distribution(prior, counts):
    a, b = prior[0] + counts[0], prior[1] + counts[1]
    mean, deviation = floats(posterior_value, *counts, 0.0, prior)
    assert mean == pytest.approx(a / (a + b), rel=1e-9)
    assert deviation == pytest.approx(math.sqrt(a * b / (a + b) ** 2 / (a + b + 1)), rel=1e-9)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("counts", [(0, 0), (3, 1), (0, 16), (16, 0)])
def test_against_a_plain_sum_over_rates(eta, counts):
    """With a uniform prior the posterior is p^s (1 - p)^f, integrated by Simpson's rule on 200,001 rates."""
    s, f = counts
    rates = np.linspace(0, 1, 200_001)
    density = np.array([1, *[4, 2] * 99_999, 4, 1]) * rates**s * (1 - rates) ** f
    values = rates if eta == 0 else np.log1p(rates * math.expm1(eta)) / eta
    mean = np.average(values, weights=density)
    variance = np.average((values - mean) ** 2, weights=density)
    got = floats(posterior_value, float(s), float(f), eta, (1.0, 1.0))
    assert got == pytest.approx([mean, math.sqrt(variance)], abs=2e-7)


def test_against_a_million_draws():
    torch.manual_seed(0)
    p = torch.distributions.Beta(torch.tensor(0.3).double(), torch.tensor(7.2).double()).sample((1_000_000,))
    values = (p * math.expm1(10)).log1p() / 10
    mean, deviation = floats(posterior_value, 0.0, 7.0, 10.0, (0.3, 0.2))
    assert mean == pytest.approx(values.mean().item(), abs=1.5e-3)
    assert deviation == pytest.approx(values.std().item(), abs=1.5e-3)


@pytest.mark.parametrize("eta", ETAS)
def test_the_posterior_mean_is_unbiased_when_sampling_stops_early(eta):
    """Enumerates sampling until the first success, at most 6 times. On average, the posterior mean equals the prior
    mean, while the mean of the sample is far too high."""
    a, b = 0.7, 1.8
    outcomes = [(1, k - 1) for k in range(1, 7)] + [(0, 6)]
    probabilities = [beta_binomial(a, b, s, f) for s, f in outcomes]
    assert sum(probabilities) == pytest.approx(1.0)
    s, f = torch.tensor(outcomes, dtype=torch.float64).T
    mean, deviation = posterior_value(s, f, eta, (a, b))
    prior_mean, prior_deviation = floats(posterior_value, 0.0, 0.0, eta, (a, b))
    weights = torch.tensor(probabilities, dtype=torch.float64)
    assert (weights @ mean).item() == pytest.approx(prior_mean, rel=1e-10)
    # The law of total variance: the prior variance is the mean posterior variance plus the variance of the means.
    between = weights @ (mean - prior_mean).square()
    assert (weights @ deviation.square() + between).item() == pytest.approx(prior_deviation**2, rel=1e-9)
    if eta == 0:
        assert (weights @ (s / (s + f))).item() > prior_mean + 0.1


@pytest.mark.parametrize("eta", [2.0, 10.0])
def test_the_posterior_mean_removes_the_bias_of_the_logarithm(eta):
    """Enumerates the outcomes of K = 4. On average, the plain value is too low, and the posterior mean is not."""
    a, b = 0.5, 0.5
    weights = [math.comb(4, s) * beta_binomial(a, b, s, 4 - s) for s in range(5)]
    truth = floats(posterior_value, 0.0, 0.0, eta, (a, b))[0]
    plain = sum(w * value(s / 4, eta) for s, w in enumerate(weights))
    s = torch.arange(5.0)
    corrected = torch.tensor(weights).double() @ posterior_value(s, 4 - s, eta, (a, b))[0]
    assert corrected.item() == pytest.approx(truth, rel=1e-9)
    assert plain < truth - 0.02


def test_many_continuations_give_the_plain_estimate():
    s, f = torch.tensor([1e6, 3e6]), torch.tensor([3e6, 1e6])
    for eta in ETAS:
        mean, deviation = posterior_value(s, f, eta, (0.5, 0.5))
        torch.testing.assert_close(
            mean, soft_value_from_rate(torch.tensor([0.25, 0.75]).double(), eta), rtol=0, atol=2e-5
        )
        assert deviation.max() < 1e-3


def test_shapes_and_long_inputs():
    s = torch.randint(0, 9, (3, 3000), generator=torch.Generator().manual_seed(0)).double()
    mean, deviation = posterior_value(s, 8 - s, 2.0, (0.5, 0.5))
    assert mean.shape == deviation.shape == (3, 3000) and mean.dtype == torch.float64
    means, deviations = posterior_value(torch.arange(9.0), 8 - torch.arange(9.0), 2.0, (0.5, 0.5))
    assert torch.equal(mean, means[s.long()]) and torch.equal(deviation, deviations[s.long()])
    with pytest.raises(ValueError, match="eta: got inf"):
        posterior_value(s, s, math.inf, (0.5, 0.5))


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("counts", [(0.0, 0.0), (0.0, 12.0), (5.0, 5.0), (30.0, 0.0)])
def test_expected_change_is_the_expected_reduction_of_the_variance(eta, counts):
    prior = (0.5, 0.4)
    s, f = counts
    rate = (prior[0] + s) / (sum(prior) + s + f)
    now = floats(posterior_value, s, f, eta, prior)[1] ** 2
    later = rate * floats(posterior_value, s + 1, f, eta, prior)[1] ** 2
    later += (1 - rate) * floats(posterior_value, s, f + 1, eta, prior)[1] ** 2
    change = expected_change(torch.tensor([s]), torch.tensor([f]), eta, prior).item()
    assert change == pytest.approx(now - later, rel=1e-6, abs=1e-12)
    if eta == 0:
        assert change == pytest.approx(now / (sum(prior) + s + f + 1), rel=1e-9)


@pytest.mark.parametrize("eta", ETAS)
def test_success_counts_preserve_the_value(eta):
    rewards = [[0.0, 1.0, 1.0], [0.25], [0.1, 0.9, 0.3, 1.0]]
    successes, failures = success_counts(rewards, eta)
    for rewards_K, s, f in zip(rewards, successes, failures, strict=True):
        assert (s + f).item() == len(rewards_K)
        assert value((s / len(rewards_K)).item(), eta) == pytest.approx(
            soft_value(torch.tensor(rewards_K, dtype=torch.float64), eta).item(), abs=1e-12
        )
    counts = success_counts([[0.0, 1.0, 1.0], []], eta)
    assert [count.tolist() for count in counts] == [[2.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("reward", [-0.1, 1.5, math.nan])
def test_rewards_outside_0_and_1_raise(reward):
    with pytest.raises(ValueError, match=r"outside \[0, 1\].*allocation='fixed'"):
        success_counts([[0.5], [reward]], 2.0)


def test_the_fitted_prior_is_the_optimum_of_a_fine_grid():
    outcomes = [(0, 4)] * 7 + [(4, 0)] * 9 + [(1, 3), (3, 1), (2, 2), (0, 0), (0.5, 1.5), (12, 2)]

    def log_posterior(x, y):
        likelihood = sum(math.log(beta_binomial(math.exp(x), math.exp(y), s, f)) for s, f in outcomes)
        return likelihood - (x * x + y * y) / 2

    grid = [i / 100 for i in range(-300, 101)]
    best = max((log_posterior(x, y), x, y) for x in grid[::5] for y in grid[::5])
    best = max((log_posterior(best[1] + i / 100, best[2] + j / 100), best[1] + i / 100, best[2] + j / 100)
               for i in range(-6, 7) for j in range(-6, 7))  # fmt: skip
    alpha, beta = fit_beta_prior(*torch.tensor(outcomes).T)
    assert (math.log(alpha), math.log(beta)) == pytest.approx(best[1:], abs=0.006)
    assert log_posterior(math.log(alpha), math.log(beta)) >= best[0] - 1e-9


def test_the_fitted_prior_recovers_the_prior_of_the_rates():
    torch.manual_seed(1)
    rates = torch.distributions.Beta(0.4, 0.15).sample((20_000,))
    s = torch.distributions.Binomial(6, rates).sample()
    alpha, beta = fit_beta_prior(s, 6 - s)
    assert (alpha, beta) == pytest.approx((0.4, 0.15), rel=0.05)
    outcomes, counts = s.unique(return_counts=True)
    assert fit_beta_prior(outcomes, 6 - outcomes, counts) == (alpha, beta)  # each distinct outcome with its count
    assert fit_beta_prior(torch.zeros(0), torch.zeros(0)) == (1.0, 1.0)
    with torch.inference_mode():  # collections and evaluations may run in inference mode
        alpha, beta = fit_beta_prior(torch.full((5000,), 6.0), torch.zeros(5000))
    assert alpha > 1 and beta < 0.03 and math.isfinite(alpha)  # finite even if all continuations succeed


def test_weights_by_hand():
    # c = 0.05: an exact label has weight 1, a label with variance 0.05 has 1/2, a label with variance 0.15 has 1/4.
    std = torch.tensor([0.0, 0.05, 0.15]).sqrt()
    torch.testing.assert_close(precision_weights(std), torch.tensor([1.0, 0.5, 0.25]))
    assert precision_weights(std.bfloat16()).dtype == torch.float32
