"""The entropy-regularised (ER) value of a prefix, which turns the rewards of sampled continuations into a soft label.
Pure tensor functions."""

import math

import torch
from torch import Tensor

from .precision import at_least_float32


# For |eta| below the first or above the second bound, the value equals its limit in float32 for rewards of any
# practical size, while eta itself would become subnormal or overflow.
_SMALLEST_ETA = 1e-30
_LARGEST_ETA = 1e30


def soft_value(rewards: Tensor, eta: float, dim: int = -1) -> Tensor:
    r"""
    Entropy-regularised value of a prefix, estimated from the rewards of continuations sampled from the reference
    policy.

    $$ V_\eta = \frac{1}{\eta} \log \frac{1}{K} \sum_{k=1}^{K} e^{\eta r_k} $$

    It is computed as \\( m + \log(1 + \mathrm{mean}(\mathrm{expm1}(\eta (r - m)))) / \eta \\) with the pivot \\( m =
    \max r \\) (\\( \min r \\) for negative eta). This is accurate in float32 for small eta, where
    `logsumexp(eta * r) / eta - log(K) / eta` loses all digits.

    Args:
        rewards (`torch.Tensor`):
            Rewards of the K continuations along `dim`, of any shape and any finite range. Integers, booleans and half
            precision are converted to float32. float64 stays float64.
        eta (`float`):
            Inverse reward temperature, in 1/reward. May be any float: 0 gives the mean (Math-Shepherd's soft
            estimation), `inf` the maximum (its hard estimation), `-inf` the minimum.
        dim (`int`, *optional*, defaults to `-1`):
            Axis of the continuations. The result does not have it.

    Returns:
        `torch.Tensor`: values, with the shape of `rewards` without `dim`. For eta >= 0, the value is between the mean
        and the maximum, and increases with eta. For eta > 0 and finite K, the estimate is too low on average, by about
        Var(e^{eta r}) / (2 eta K E[e^{eta r}]^2). NaN rewards give NaN.

    Raises:
        `ValueError`: if eta is NaN, or there are no continuations along `dim`.

    Source: Zhang et al., Entropy-Regularized Process Reward Model (arXiv 2412.11006), the process reward of section 3.
    """
    eta = _checked_eta(eta)
    rewards = at_least_float32(rewards)
    if rewards.shape[dim] == 0:
        raise ValueError(
            f"Continuations: got a rewards tensor of shape {tuple(rewards.shape)} without rewards along dim={dim}, "
            "expected at least one reward per prefix. Sample continuations first (num_continuations >= 1)."
        )
    if eta == 0:
        return rewards.mean(dim)
    if math.isinf(eta):
        return rewards.amax(dim) if eta > 0 else rewards.amin(dim)

    # The pivot is detached because V(r + c) = V(r) + c: the gradient of the other terms is already softmax(eta r).
    pivot = (rewards.amax(dim, keepdim=True) if eta > 0 else rewards.amin(dim, keepdim=True)).detach()
    exponents = eta * (rewards - pivot)
    return pivot.squeeze(dim) + _log_of_one_plus(exponents.expm1().mean(dim), exponents.exp().mean(dim)) / eta


def soft_value_from_rate(p: Tensor, eta: float) -> Tensor:
    r"""
    Entropy-regularised value of a prefix whose continuations earn 1 with probability `p` and 0 otherwise.

    $$ V_\eta(p) = \frac{1}{\eta} \log(1 + p\, (e^{\eta} - 1)) $$

    Args:
        p (`torch.Tensor`):
            Success rates in [0, 1], of any shape.
        eta (`float`):
            Inverse reward temperature. May be any float: 0 gives `p`, `inf` gives 1 where p > 0 and 0 elsewhere,
            `-inf` gives 1 where p = 1 and 0 elsewhere.

    Returns:
        `torch.Tensor`: values in [0, 1] of the same shape. They increase with `p`.

    Raises:
        `ValueError`: if eta is NaN, or a rate is NaN or outside [0, 1].

    Source: arXiv 2412.11006, the process reward of section 3 for 0/1 rewards.
    """
    eta = _checked_eta(eta)
    p = at_least_float32(p)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(
            "Success rates: got a value that is NaN or outside [0, 1]. Divide successes by continuations."
        )
    if eta == 0:
        return p.clone()
    if eta < 0:  # V_{-eta}(r) = 1 - V_eta(1 - r) for rewards in {0, 1}
        return 1 - soft_value_from_rate(1 - p, -eta)
    if math.isinf(eta):
        return (p > 0).to(p.dtype)
    # With the pivot 1, the best reward, the mean is p e^0 + (1 - p) e^{-eta}.
    mean_expm1 = (1 - p) * math.expm1(-eta)
    log_mean_exp = torch.logaddexp(_log(p), _log(1 - p) - eta)
    return 1 + torch.where(mean_expm1 > -0.5, mean_expm1.clamp_min(-0.5).log1p(), log_mean_exp) / eta


def implied_success_rate(values: Tensor, eta: float) -> Tensor:
    r"""
    Computes the success rate that has a given entropy-regularised value. The inverse of [`soft_value_from_rate`].

    $$ p = \frac{e^{\eta V} - 1}{e^{\eta} - 1} $$

    Args:
        values (`torch.Tensor`):
            Values, or scores that estimate values, in [0, 1], of any shape.
        eta (`float`):
            Inverse reward temperature, finite. 0 returns the values themselves.

    Returns:
        `torch.Tensor`: success rates in [0, 1] of the same shape, in float64. 0 and 1 do not change.

    Raises:
        `ValueError`: if eta is infinite or NaN.

    Note: unlike V, `exp(eta V)` is a mean over continuations. For rates, the noise of K continuations can therefore be
    removed exactly at every eta, see [`squared_error_without_noise`].
    """
    if not math.isfinite(eta):
        raise ValueError(
            f"`eta` is {eta}, expected a finite number, because a maximum does not determine the success rate. Pass "
            "the eta of the labels."
        )
    values = values.double()
    if eta == 0:
        return values
    if eta < 500:
        # The two expm1 may round differently, and a rate of 1 + 2e-16 would make a failure count negative.
        rates = (eta * values).expm1() / math.expm1(eta)
        return torch.where(values == 1, values, rates.clamp(0, 1))
    # exp(eta) would overflow in float64, so numerator and denominator are divided by it.
    return (eta * (values - 1)).exp() - math.exp(-eta)


def value_at_eta(values: Tensor, trained_eta: float, eta: float) -> Tensor:
    r"""
    Converts values at one eta to values at another eta, for rewards of 0 and 1.

    $$ V_\eta(V_{\eta'}^{-1}(v)) $$

    \\( V_{\eta'}^{-1} \\) is [`implied_success_rate`] at `trained_eta`, and \\( V_\eta \\) is
    [`soft_value_from_rate`]. Other rewards than 0 and 1 have no such conversion, because their value at one eta does
    not determine the value at another.

    Args:
        values (`torch.Tensor`):
            Values at `trained_eta`, or scores that estimate them, in [0, 1], of any shape.
        trained_eta (`float`):
            Eta of `values`. It must be finite, unless it equals `eta`.
        eta (`float`):
            Eta of the result. May be any float.

    Returns:
        `torch.Tensor`: values in [0, 1] of the same shape, in float64. The order of the values is kept, and 0 and 1 do
        not change. The values are unchanged if `eta` equals `trained_eta`.

    Raises:
        `ValueError`: if `trained_eta` is infinite and differs from `eta`, if an eta is NaN, or if a value is NaN or
            outside [0, 1] and the etas differ.

    Limits: at `trained_eta=0` it is [`soft_value_from_rate`], and at `eta=0` it is [`implied_success_rate`].
    """
    if trained_eta == eta:
        return values.double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("Values: got a value that is NaN or outside [0, 1]. Convert only the values of 0/1 rewards.")
    return soft_value_from_rate(implied_success_rate(values, trained_eta).clamp(0, 1), eta)


def _log_of_one_plus(mean_expm1: Tensor, mean_exp: Tensor) -> Tensor:
    # log1p is accurate near 0 but loses digits near -1, where most continuations are far from the pivot. The plain log
    # has the opposite behaviour. The clamp keeps the gradient finite in the branch that is not selected.
    near_one = mean_expm1 > -0.5
    return torch.where(near_one, mean_expm1.clamp_min(-0.5).log1p(), mean_exp.log())


def _log(p: Tensor) -> Tensor:
    # The clamp makes the gradient at p = 0 zero instead of NaN; log(0) stays -inf.
    return torch.where(p > 0, p.clamp_min(torch.finfo(p.dtype).tiny).log(), -torch.inf)


def _checked_eta(eta: float) -> float:
    eta = float(eta)
    if math.isnan(eta):
        raise ValueError(
            "eta: got NaN, expected a float from -inf to inf. Pass 0 for the mean of the rewards, inf for the maximum."
        )
    if abs(eta) < _SMALLEST_ETA:
        return 0.0
    return math.copysign(math.inf, eta) if abs(eta) > _LARGEST_ETA else eta
