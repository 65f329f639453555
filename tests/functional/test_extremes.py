"""Tests the ends of every range: eta, rewards, logits, precision, and masks that are False everywhere."""

import math

import mpmath
import pytest
import torch

from erprm_trl.functional import (
    aggregate,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    group_step_advantages,
    kl_estimate,
    log_ratio_returns,
    masked_moments,
    masked_whiten,
    place_at_step_ends,
    posterior_value,
    prefix_values,
    soft_step_cross_entropy,
    soft_value,
    soft_value_from_rate,
    spread_over_steps,
    step_log_odds,
    step_rewards,
    success_counts,
)
from erprm_trl.functional.advantages import CREDITS
from erprm_trl.functional.aggregation import AGGREGATIONS


ETAS = [0.0, *(sign * 10.0**power for power in (-8, -7, -3, 0, 2, 4, 6) for sign in (1, -1)), math.inf, -math.inf]
HALVES = [torch.bfloat16, torch.float16]
EMPTY = torch.zeros(2, 3, dtype=torch.bool)


def value(successes, count, eta):
    """The definition for rewards of 0 and 1, in 60 digits."""
    if math.isinf(eta):
        return float(successes > 0 if eta > 0 else successes == count)
    with mpmath.workdps(60):
        p = mpmath.mpf(successes) / count
        return float(value_of_rate(p, eta))


@pytest.mark.parametrize("eta", ETAS)
def test_values_are_labels_at_every_eta(eta):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for count, successes in ((1, 0), (1, 1), (16, 0), (16, 1), (16, 15), (16, 16), (1000, 1), (1000, 999)):
            rewards = torch.tensor([1.0] * successes + [0.0] * (count - successes), dtype=dtype)
            rate = torch.tensor(successes / count, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
            for got in (soft_value(rewards, eta), soft_value_from_rate(rate, eta)):
                assert got.dtype == rate.dtype
                assert 0 <= got.item() <= 1, (dtype, count, successes)  # training needs labels in [0, 1]
                assert got.item() == pytest.approx(value(successes, count, eta), abs=1e-6)


@pytest.mark.parametrize("eta", [eta for eta in ETAS if math.isfinite(eta)])
def test_posteriors_are_labels_at_every_finite_eta(eta):
    rewards = [[0.0] * 16, [1.0] * 16, [1.0] + [0.0] * 15, [], [0.5]]
    successes, failures = success_counts(rewards, eta)
    assert (successes >= 0).all() and (failures >= 0).all()
    means, deviations = posterior_value(successes, failures, eta, (1.0, 1.0))
    assert bool(((means >= 0) & (means <= 1)).all()) and bool(((deviations >= 0) & (deviations <= 0.5)).all())
    # Without rewards, the posterior mean is the mean of the value over the prior, here a uniform rate.
    with mpmath.workdps(30):
        exact = mpmath.quad(lambda p: value_of_rate(p, abs(eta)), [0, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1])
        exact = 1 - exact if eta < 0 else exact  # for rewards of 0 and 1, V_-eta(p) = 1 - V_eta(1 - p)
    assert means[3].item() == pytest.approx(float(exact), abs=2e-3)
    assert successes[:3].tolist() == [0, 16, 1] and failures[:3].tolist() == [16, 0, 15]


def value_of_rate(p, eta):
    """log((1 - p) + p e^eta) / eta"""
    return p if eta == 0 else mpmath.log(1 - p + p * mpmath.exp(mpmath.mpf(eta))) / mpmath.mpf(eta)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("columns", [1, 2])
def test_losses_of_extreme_logits(columns, dtype):
    ends = [1e4, -1e4, 0.0, 1e-4, 30.0, -30.0]
    logits = torch.tensor([[good, bad][:columns] for good in ends for bad in ends], dtype=dtype)
    for label in (0.0, 1.0, 0.3):
        labels = torch.full((len(logits),), label)
        wide = logits.float().clone().requires_grad_()
        losses = soft_step_cross_entropy(wide, labels, "none")
        losses.sum().backward()
        exact = logits.double()
        z = exact[:, 0] - exact[:, 1] if columns == 2 else exact[:, 0]
        # -v log p - (1 - v) log(1 - p) = max(z, 0) - v z + log(1 + e^-|z|)
        expected = z.clamp_min(0) - labels.double() * z + (-z.abs()).exp().log1p()
        assert torch.equal(soft_step_cross_entropy(logits, labels, "none"), losses.detach())
        torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(wide.grad[:, 0].double(), 1 / (1 + (-z).exp()) - labels.double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(step_log_odds(logits).sigmoid().double(), 1 / (1 + (-z).exp()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_inputs_are_computed_in_float32(dtype):
    """The result has dtype float32, and equals the result in float64 for the same numbers."""
    generator = torch.Generator().manual_seed(0)
    scores, mask = torch.rand(8, 6, generator=generator).to(dtype), torch.rand(8, 6, generator=generator) > 0.3
    mask = mask.sort(dim=1, descending=True).values | (torch.arange(6) == 0)
    exact = scores.double()
    ends = torch.arange(6).expand(8, 6) * 3

    def close(function, *inputs):
        got = function(*inputs)
        expected = function(*(tensor.double() if tensor.dtype == dtype else tensor for tensor in inputs))
        got, expected = (result if isinstance(result, tuple) else (result,) for result in (got, expected))
        for left, right in zip(got, expected, strict=True):
            assert left.dtype == (torch.bool if right.dtype == torch.bool else torch.float32)
            torch.testing.assert_close(left.double(), right.double(), atol=3e-5, rtol=1e-5)

    for method in AGGREGATIONS:
        close(lambda s, method=method: aggregate(s, method, mask), scores)
        close(lambda s, method=method: prefix_values(s, mask, method), scores)
    for credit in CREDITS:
        close(lambda s, credit=credit: step_rewards(s, mask, credit, aggregation="product"), scores)
    for scale in ("group", "batch", "none"):
        close(lambda s, scale=scale: group_step_advantages(s, mask, 4, scale=scale), scores)
    close(lambda s: generalized_advantages(s, s / 2, mask), scores)
    close(lambda s: place_at_step_ends(s, ends, mask, 20), scores)
    close(lambda s: spread_over_steps(s, ends, mask, 20), scores)
    close(lambda s: masked_moments(s, mask), scores)
    close(lambda s: masked_whiten(s, mask), scores)
    close(lambda s: clipped_value_loss(s, s / 2, s * 2, 0.2), scores)
    close(lambda s: kl_estimate(-s, -2 * s, "k3"), scores)
    close(lambda s: log_ratio_returns(s[:, 0], -s, -2 * s, mask, ends // 3, mask, beta=0.5), scores)
    assert exact.dtype == torch.float64


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_masks_that_are_false_everywhere(garbage):
    values = torch.full((2, 3), garbage)
    ends = torch.zeros(2, 3, dtype=torch.long)
    for zeros in (
        *(step_rewards(values, EMPTY, credit) for credit in CREDITS),
        *(prefix_values(values, EMPTY, method) for method in AGGREGATIONS),
        *(group_step_advantages(values, EMPTY, 2, scale=scale) for scale in ("group", "batch", "none")),
        generalized_advantages(values, values, EMPTY),
        masked_whiten(values, EMPTY),
        place_at_step_ends(values, ends, EMPTY, 5),
        spread_over_steps(values, ends, EMPTY, 5),
        log_ratio_returns(values[:, 0], values, values, EMPTY, ends, EMPTY, beta=1.0),
        *masked_moments(values, EMPTY),
    ):
        assert not zeros.any()
    assert explained_variance(values, values, EMPTY).isnan()  # as documented for targets that do not vary


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("credit", CREDITS)
def test_scores_that_are_all_equal(credit, score):
    mask = torch.tensor([[True, True], [True, False]])
    rewards = step_rewards(torch.full((2, 2), score), mask, credit, aggregation="min", initial_value=score)
    advantages = group_step_advantages(rewards, mask, 2)
    assert bool(rewards.isfinite().all()) and bool(advantages.isfinite().all())
    # If all steps have the same reward, all advantages are 0. "outcome" rewards the last step only.
    if credit in ("difference", "sum") or score == 0:
        assert not advantages.any()
