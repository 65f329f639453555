"""Tests `soft_value` against mpmath, its limits and its identities."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erprm_trl.functional import implied_success_rate, soft_value, soft_value_from_rate, value_at_eta


DECADES = [sign * 10.0**power for power in range(-7, 6) for sign in (1, -1)]
rewards_lists = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20)


def oracle(rewards, eta):
    """The definition in 60-digit arithmetic."""
    with mpmath.workdps(60):
        terms = [mpmath.exp(mpmath.mpf(eta) * mpmath.mpf(reward)) for reward in rewards]
        return float(mpmath.log(mpmath.fsum(terms) / len(terms)) / mpmath.mpf(eta))


def test_hand_worked_value():
    # rewards 1, 0 at eta = ln 3: (1/ln 3) log((3 + 1) / 2) = ln 2 / ln 3 = 0.6309298
    assert soft_value(torch.tensor([1.0, 0.0]), math.log(3)).item() == pytest.approx(0.6309298, abs=1e-6)


@pytest.mark.parametrize("eta", DECADES)
@pytest.mark.parametrize(
    "rewards",
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.0] * 9_999 + [1.0],
        [0.3, 0.7, 0.1, 0.9, 0.5],
        [-1.5, 2.0, 0.25],
        [1.0] * 16,
    ],
    ids=["one of four", "one of ten thousand", "graded", "negative", "constant"],
)
def test_float32_error_is_below_1e_6_over_twelve_decades(rewards, eta):
    value = soft_value(torch.tensor(rewards, dtype=torch.float32), eta)
    assert value.dtype == torch.float32
    exact = oracle(torch.tensor(rewards, dtype=torch.float32).tolist(), eta)
    assert value.item() == pytest.approx(exact, abs=1e-6 * max(1.0, abs(exact)))


def test_the_pivoted_formula_is_accurate_where_the_plain_formula_fails():
    # The plain formula is logsumexp(eta r)/eta - log(K)/eta, here at eta = 1e-7 in float32.
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    naive = torch.logsumexp(1e-7 * rewards, -1) / 1e-7 - math.log(4) / 1e-7
    assert abs(naive.item() - 0.25) > 0.1
    assert soft_value(rewards, 1e-7).item() == pytest.approx(0.25, abs=1e-6)


def test_limits():
    rewards = torch.tensor([[0.2, 0.9, 0.4], [0.0, 0.0, 1.0]])
    assert torch.equal(soft_value(rewards, 0), rewards.mean(-1))
    assert torch.equal(soft_value(rewards, math.inf), torch.tensor([0.9, 1.0]))
    assert torch.equal(soft_value(rewards, -math.inf), torch.tensor([0.2, 0.0]))
    assert torch.equal(soft_value(rewards, 1e300), soft_value(rewards, math.inf))
    assert torch.equal(soft_value(rewards, 1e-300), soft_value(rewards, 0))


@settings(deadline=None, max_examples=60)
@given(rewards_lists, st.floats(0, 50), st.floats(0, 50), st.floats(-3, 3))
def test_identities(rewards, eta, other_eta, shift):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    value = soft_value(rewards, eta)
    assert rewards.mean() - 1e-9 <= value <= rewards.max() + 1e-9
    low, high = sorted((eta, other_eta))
    assert soft_value(rewards, low) <= soft_value(rewards, high) + 1e-9  # increasing in eta
    assert torch.allclose(soft_value(rewards + shift, eta), value + shift, atol=1e-9)
    assert torch.allclose(soft_value(rewards.flip(0), eta), value, atol=1e-12)
    assert torch.allclose(-soft_value(-rewards, eta), soft_value(rewards, -eta), atol=1e-9)  # the dual form


def test_any_axis_and_shape():
    rewards = torch.rand(3, 4, 5)
    assert torch.allclose(soft_value(rewards, 2.0, dim=1), soft_value(rewards.transpose(1, 2), 2.0))
    assert soft_value(rewards, 2.0, dim=0).shape == (4, 5)


def test_dtypes():
    halves = torch.tensor([1.0, 0.0, 1.0], dtype=torch.bfloat16)
    assert soft_value(halves, 2.0).dtype == torch.float32
    assert soft_value(torch.tensor([True, False]), 0).item() == 0.5
    assert soft_value(torch.tensor([1, 0, 0, 0]), 0).item() == 0.25
    assert soft_value(halves.double(), 2.0).dtype == torch.float64


@pytest.mark.parametrize("eta", [0.0, 1e-7, 0.5, 30.0, -4.0])
def test_gradients(eta):
    rewards = torch.tensor([[0.1, 0.8, 0.4], [1.0, 1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: soft_value(r, eta), (rewards,), atol=1e-6)


def test_gradient_is_the_softmax_and_finite_at_extremes():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.5], requires_grad=True)
    soft_value(rewards, 3.0).backward()
    assert torch.allclose(rewards.grad, torch.softmax(3.0 * rewards.detach(), -1), atol=1e-6)
    for eta in (1e5, -1e5, 1e-7):
        rewards.grad = None
        soft_value(rewards, eta).backward()
        assert rewards.grad.isfinite().all()
        assert rewards.grad.sum().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("eta", [*DECADES, 0.0, 1.0, 2.5, -2.5])
@pytest.mark.parametrize("successes", [0, 1, 7, 16])
def test_the_value_of_a_rate_equals_the_value_of_its_rewards(successes, eta):
    rewards = torch.tensor([1.0] * successes + [0.0] * (16 - successes))
    rate = soft_value_from_rate(torch.tensor(successes / 16), eta)
    assert rate.item() == pytest.approx(soft_value(rewards.double(), eta).item(), abs=1e-6)


def test_limits_and_gradient_of_the_value_of_a_rate():
    p = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(soft_value_from_rate(p, 0), p)
    assert torch.equal(soft_value_from_rate(p, math.inf), torch.tensor([0.0, 1.0, 1.0]))
    assert torch.equal(soft_value_from_rate(p, -math.inf), torch.tensor([0.0, 0.0, 1.0]))
    p = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64, requires_grad=True)
    for eta in (0.0, 2.0, -2.0, 40.0):
        assert torch.autograd.gradcheck(lambda rate, eta=eta: soft_value_from_rate(rate, eta), (p,), atol=1e-5)


def test_the_bias_for_finite_k_matches_the_docstring():
    # Compares the exact expectation over the binomial with the first-order bias, for p = 0.3, eta = 2 and K = 16.
    p, eta, k = 0.3, 2.0, 16
    counts = torch.arange(k + 1)
    log_choose = torch.lgamma(torch.tensor(k + 1.0)) - torch.lgamma(counts + 1.0) - torch.lgamma(k - counts + 1.0)
    weights = (log_choose + counts * math.log(p) + (k - counts) * math.log(1 - p)).exp().double()
    expected = (weights * soft_value_from_rate(counts.double() / k, eta)).sum().item()
    exact = soft_value_from_rate(torch.tensor(p, dtype=torch.float64), eta).item()
    mean = 1 + p * math.expm1(eta)
    variance = p * (1 - p) * math.expm1(eta) ** 2
    assert expected - exact == pytest.approx(-variance / (2 * eta * k * mean**2), rel=0.2)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="eta: got NaN"):
        soft_value(torch.ones(2), math.nan)
    with pytest.raises(ValueError, match=r"shape \(3, 0\).*Sample continuations"):
        soft_value(torch.ones(3, 0), 1.0)
    with pytest.raises(ValueError, match="outside"):
        soft_value_from_rate(torch.tensor([0.5, 1.5]), 1.0)
    assert soft_value(torch.tensor([math.nan, 1.0]), 2.0).isnan()  # never silently skipped


@pytest.mark.parametrize("eta", [-900.0, -3.0, 1e-6, 0.0, 2.0, 30.0, 900.0])
def test_the_implied_rate_inverts_the_value(eta):
    rates = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    implied = implied_success_rate(soft_value_from_rate(rates, eta), eta)
    torch.testing.assert_close(implied, rates, atol=1e-9, rtol=1e-9)
    assert implied_success_rate(torch.tensor([0, 1]), eta).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("trained", [-3.0, 0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("eta", [-8.0, 0.0, 2.0, 30.0, math.inf])
def test_values_are_converted_from_one_eta_to_another(trained, eta):
    rewards = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    before = soft_value(rewards, trained)
    converted = value_at_eta(before, trained, eta)
    assert converted.tolist() == pytest.approx(soft_value(rewards, eta).tolist(), abs=1e-12)
    assert converted[0] == 0 and converted[-1] == 1
    assert torch.equal(value_at_eta(before, trained, trained), before)


def test_values_that_cannot_be_converted_are_errors():
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="Values: got a value that is NaN or outside"):
            value_at_eta(torch.tensor([0.5, value]), 2.0, 0.0)
    with pytest.raises(ValueError, match="`eta` is inf, expected a finite number"):
        value_at_eta(torch.tensor([0.5]), math.inf, 0.0)
    assert value_at_eta(torch.tensor([0.5]), math.inf, math.inf).tolist() == [0.5]


def test_an_infinite_eta_has_no_implied_rate():
    with pytest.raises(ValueError, match="`eta` is inf, expected a finite number"):
        implied_success_rate(torch.zeros(2), math.inf)
