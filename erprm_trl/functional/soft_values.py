"""The entropy-regularised (ER) value of a prefix and its limits: rewards of sampled continuations become soft step
labels.

Pure tensor functions. `erprm_trl.rollouts.labels` applies them to the rewards of sampled continuations.
"""

import math

import torch
from torch import Tensor

from .precision import at_least_float32


# Beyond these |eta| the value and its limit differ by less than float32 can show for rewards of any practical size,
# while eta itself would overflow or turn subnormal in float32.
_SMALLEST_ETA = 1e-30
_LARGEST_ETA = 1e30


def soft_value(rewards: Tensor, eta: float, dim: int = -1) -> Tensor:
    r"""
    Entropy-regularised value of a prefix, estimated from the rewards of continuations sampled from the reference
    policy.

    $$ V_\eta = \frac{1}{\eta} \log \frac{1}{K} \sum_{k=1}^{K} e^{\eta r_k} $$

    computed as \\( m + \log(1 + \mathrm{mean}(\mathrm{expm1}(\eta (r - m)))) / \eta \\) with the pivot \\( m = \max r
    \\) (\\( \min r \\) for negative eta), which keeps float32 accuracy where `logsumexp(eta * r) / eta - log(K) / eta`
    loses all of it.

    Args:
        rewards (`torch.Tensor`):
            Rewards of the K continuations along `dim`, any shape and any finite range. Integers and booleans are read
            as float32; half precision is computed and returned in float32; float64 stays float64.
        eta (`float`):
            Inverse reward temperature, in 1/reward, any float. 0 gives the mean (Math-Shepherd's soft estimation),
            `inf` the maximum (its hard estimation), `-inf` the minimum.
        dim (`int`, *optional*, defaults to `-1`):
            Axis of the continuations; it is reduced away.

    Returns:
        `torch.Tensor`: values, the shape of `rewards` without `dim`. For eta >= 0: mean <= V <= max, increasing in
        eta. With finite K the estimate is biased low by about Var(e^{eta r}) / (2 eta K E[e^{eta r}]^2). NaN rewards
        give NaN.

    Raises:
        `ValueError`: if eta is NaN or there are no continuations along `dim`.

    Source: Zhang et al., Entropy-Regularized Process Reward Model (arXiv 2412.11006), the process reward of section 3.
    """
    eta = _checked_eta(eta)
    rewards = at_least_float32(rewards)
    if rewards.shape[dim] == 0:
        raise ValueError(
            f"Continuations: got a rewards tensor of shape {tuple(rewards.shape)} with none along dim={dim}, expected "
            "at least one reward per prefix. Sample continuations first (num_continuations >= 1)."
        )
    if eta == 0:
        return rewards.mean(dim)
    if math.isinf(eta):
        return rewards.amax(dim) if eta > 0 else rewards.amin(dim)

    # V(r + c) = V(r) + c, so the pivot carries no gradient of its own: the rest sums to softmax(eta r), the whole
    # gradient.
    pivot = (rewards.amax(dim, keepdim=True) if eta > 0 else rewards.amin(dim, keepdim=True)).detach()
    exponents = eta * (rewards - pivot)
    return pivot.squeeze(dim) + _log_of_one_plus(exponents.expm1().mean(dim), exponents.exp().mean(dim)) / eta


def soft_value_from_rate(p: Tensor, eta: float) -> Tensor:
    r"""
    Entropy-regularised value of a prefix whose continuations earn 1 with probability `p` and 0 otherwise.

    $$ V_\eta(p) = \frac{1}{\eta} \log(1 + p\, (e^{\eta} - 1)) $$

    Args:
        p (`torch.Tensor`):
            Success rates, any shape, in [0, 1].
        eta (`float`):
            Inverse reward temperature, any float. 0 gives `p`; `inf` gives 1 where p > 0 and 0 elsewhere; `-inf` gives
            1 where p = 1 and 0 elsewhere.

    Returns:
        `torch.Tensor`: values in [0, 1], the shape of `p`, a monotone map of it.

    Raises:
        `ValueError`: if eta is NaN or a rate lies outside [0, 1].

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
    # Pivot 1, the best reward: p e^0 + (1 - p) e^{-eta}.
    mean_expm1 = (1 - p) * math.expm1(-eta)
    log_mean_exp = torch.logaddexp(_log(p), _log(1 - p) - eta)
    return 1 + torch.where(mean_expm1 > -0.5, mean_expm1.clamp_min(-0.5).log1p(), log_mean_exp) / eta


def implied_success_rate(values: Tensor, eta: float) -> Tensor:
    r"""
    The success rate whose entropy-regularised value is given: undoes [`soft_value_from_rate`].

    $$ p = \frac{e^{\eta V} - 1}{e^{\eta} - 1} $$

    Args:
        values (`torch.Tensor`):
            Values, or scores that are to be values, in [0, 1], any shape.
        eta (`float`):
            Inverse reward temperature, finite. 0 gives the values themselves.

    Returns:
        `torch.Tensor`: float64 of the same shape, in [0, 1]; 0 and 1 stay what they are.

    Limits: `exp(eta V)` is a mean over continuations, which V is not: distances between rates can be freed of the
    noise of K exactly ([`squared_error_without_noise`]) at every eta.
    """
    if not math.isfinite(eta):
        raise ValueError(f"`eta` is {eta}: expected a finite number. A maximum stands for no success rate.")
    values = values.double()
    if eta == 0:
        return values
    if eta < 500:
        # The two expm1 need not round alike, and a rate of 1 + 2e-16 leaves a failure count below 0.
        rates = (eta * values).expm1() / math.expm1(eta)
        return torch.where(values == 1, values, rates.clamp(0, 1))
    # exp(eta) is about to leave float64's range: both halves of the fraction over it.
    return (eta * (values - 1)).exp() - math.exp(-eta)


def _log_of_one_plus(mean_expm1: Tensor, mean_exp: Tensor) -> Tensor:
    # log1p is exact near 0 but cancels near -1, where most continuations are far from the pivot; the plain log is the
    # reverse. The branch not taken is clamped, so that its gradient stays finite.
    near_one = mean_expm1 > -0.5
    return torch.where(near_one, mean_expm1.clamp_min(-0.5).log1p(), mean_exp.log())


def _log(p: Tensor) -> Tensor:
    # log(0) is -inf, with a gradient of zero instead of NaN.
    return torch.where(p > 0, p.clamp_min(torch.finfo(p.dtype).tiny).log(), -torch.inf)


def _checked_eta(eta: float) -> float:
    eta = float(eta)
    if math.isnan(eta):
        raise ValueError("eta: got NaN, expected any float from -inf to inf (0 is the mean, inf the maximum).")
    if abs(eta) < _SMALLEST_ETA:
        return 0.0
    return math.copysign(math.inf, eta) if abs(eta) > _LARGEST_ETA else eta
