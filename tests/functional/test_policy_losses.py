"""Tests the clipped value loss and the KL estimators by hand, by their gradients, and by exact expectations."""

import math

import pytest
import torch

from erprm_trl.functional import clipped_value_loss, kl_estimate


F64 = torch.float64


def tensors(*rows):
    return [torch.tensor([row], dtype=F64) for row in rows]


def test_value_loss_worked_by_hand():
    # The range is .2 around an old value of 0.
    # V .1, R 1: inside the range, (.1 - 1)^2 / 2 = .405.   V .5, R 1: clipped to .2, max(.25, .64) / 2 = .32.
    # V .5, R -1: max(2.25, 1.44) / 2 = 1.125. A change away from the return keeps its full gradient, so not clipped.
    # V -.5, R -1: clipped to -.2, max(.25, .64) / 2 = .32.
    values, old_values, returns = tensors([0.1, 0.5, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0])
    losses, clipped = clipped_value_loss(values, old_values, returns, 0.2)
    assert losses[0].tolist() == pytest.approx([0.405, 0.32, 1.125, 0.32])
    assert clipped[0].tolist() == [False, True, False, True]
    losses, clipped = clipped_value_loss(values, old_values, returns, None)
    assert losses[0].tolist() == pytest.approx([0.405, 0.125, 1.125, 0.125])
    assert not clipped.any() and clipped.dtype == torch.bool


@pytest.mark.parametrize("seed", range(5))
def test_value_loss_against_plain_python(seed):
    values, old_values, returns = torch.randn(3, 5, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    losses, clipped = clipped_value_loss(values, old_values, returns, 0.5)
    triples = zip(values.flatten(), old_values.flatten(), returns.flatten(), strict=True)
    for index, (value, old, target) in enumerate((float(v), float(o), float(r)) for v, o, r in triples):
        bounded = min(max(value, old - 0.5), old + 0.5)
        assert losses.flatten()[index].item() == pytest.approx(max((value - target) ** 2, (bounded - target) ** 2) / 2)
        is_clipped = abs(value - old) > 0.5 and (bounded - target) ** 2 > (value - target) ** 2
        assert clipped.flatten()[index].item() == is_clipped


def test_a_wide_range_clips_nothing():
    generator = torch.Generator().manual_seed(0)
    values, old_values, returns = torch.randn(3, 1000, dtype=F64, generator=generator)
    plain, _ = clipped_value_loss(values, old_values, returns, None)
    wide, clipped = clipped_value_loss(values, old_values, returns, 1e3)
    assert torch.allclose(wide, plain, atol=1e-12) and not clipped.any()
    # In float32, old + (V - old) often differs from V by rounding. This must not count as clipping.
    moved = old_values.float() * 10 + values.float() * 0.01
    _, clipped = clipped_value_loss(moved, old_values.float() * 10, returns.float(), 0.2)
    assert not clipped.any()
    # At the first update the values have not changed.
    _, clipped = clipped_value_loss(values, values, returns, 0.2)
    assert not clipped.any()


def test_the_gradient_is_zero_exactly_where_clipping_is_reported():
    generator = torch.Generator().manual_seed(1)
    values, old_values, returns = torch.randn(3, 500, dtype=F64, generator=generator)
    values.requires_grad_(True)
    losses, clipped = clipped_value_loss(values, old_values, returns, 0.3)
    losses.sum().backward()
    assert torch.equal(values.grad == 0, clipped)
    assert 50 < clipped.sum() < 450
    assert torch.allclose(values.grad[~clipped], (values.detach() - returns)[~clipped], atol=1e-12)


def test_gradients():
    generator = torch.Generator().manual_seed(2)
    values, old_values, returns = torch.randn(3, 20, dtype=F64, generator=generator)
    values.requires_grad_(True)
    for clip_range in (0.3, None):
        assert torch.autograd.gradcheck(
            lambda x, c=clip_range: clipped_value_loss(x, old_values, returns, c)[0], values
        )
    for estimator in ("k1", "k3"):
        assert torch.autograd.gradcheck(lambda x, e=estimator: kl_estimate(x, old_values, e), values)


def test_kl_worked_by_hand():
    # pi = 1/2, reference 1/4: d = ln 2, k3 = 1/2 - 1 + ln 2. pi = 1/4, reference 1/2: d = -ln 2, k3 = 2 - 1 - ln 2.
    logps, ref_logps = tensors([math.log(0.5), math.log(0.25), -1.0], [math.log(0.25), math.log(0.5), -1.0])
    two = math.log(2)
    assert kl_estimate(logps, ref_logps, "k1")[0].tolist() == pytest.approx([two, -two, 0.0])
    assert kl_estimate(logps, ref_logps, "k3")[0].tolist() == pytest.approx([two - 0.5, 1 - two, 0.0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(5))
def test_estimators_are_unbiased(estimator, seed):
    # The expectation under the policy, summed over all outcomes of a small distribution, equals the divergence.
    logits, ref_logits = torch.randn(2, 12, dtype=F64, generator=torch.Generator().manual_seed(seed))
    logps, ref_logps = logits.log_softmax(0), ref_logits.log_softmax(0)
    divergence = sum(math.exp(p) * (p - q) for p, q in zip(logps.tolist(), ref_logps.tolist(), strict=True))
    assert (logps.exp() * kl_estimate(logps, ref_logps, estimator)).sum().item() == pytest.approx(divergence)


def test_k3_is_never_negative_and_keeps_small_differences():
    difference = torch.logspace(-12, 1.5, 200, dtype=F64)
    for sign in (1, -1):
        k3 = kl_estimate(sign * difference, torch.zeros_like(difference), "k3")
        assert (k3 >= -1e-15 * difference).all()
        small = (difference > 1e-5) & (difference < 1e-3)
        assert torch.allclose(k3[small], difference[small] ** 2 / 2, rtol=1e-3)  # d^2 / 2 + O(d^3)
    # At d = 1e-3, k3 is 5e-7. In float32, exp(-d) - 1 + d has an error of 6e-8, while expm1 keeps four digits.
    single = kl_estimate(torch.tensor([-1.001]), torch.tensor([-1.0]), "k3").item()
    exact = float(torch.tensor(-1.001)) + 1.0
    assert single == pytest.approx(math.expm1(-exact) + exact, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    values, old_values, returns = (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    for clip_range in (0.2, None):
        losses, clipped = clipped_value_loss(values, old_values, returns, clip_range)
        assert (losses.dtype, clipped.dtype) == (out, torch.bool)
        exact, _ = clipped_value_loss(values.double(), old_values.double(), returns.double(), clip_range)
        assert torch.allclose(losses.double(), exact, atol=1e-5)
    for estimator in ("k1", "k3"):
        estimate = kl_estimate(values, old_values, estimator)
        exact = kl_estimate(values.double(), old_values.double(), estimator)
        assert estimate.dtype == out and torch.allclose(estimate.double(), exact, rtol=1e-5, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="KL estimator: got 'k2', .*'k3'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k2")
