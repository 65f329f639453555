"""How far scores lie from the values of prefixes, when those are known from K rewards each: the noise of K is taken
off. Pure tensor functions in float64; one row a prefix."""

import math

import torch
from torch import Tensor

from .soft_values import soft_value


def squared_error_without_noise(scores: Tensor, rewards: Tensor) -> Tensor:
    r"""
    Unbiased estimate of the squared distance between a score and a prefix's expected reward (eta = 0), from K rewards.

    $$ (s - \bar r)^2 - \frac{1}{K (K - 1)} \sum_{k=1}^{K} (r_k - \bar r)^2 $$

    Args:
        scores (`torch.Tensor`):
            One number a prefix, shape (P,), any range.
        rewards (`torch.Tensor`):
            Rewards of its K independent continuations, shape (P, K), K >= 2, any finite range.

    Returns:
        `torch.Tensor`: float64 of shape (P,), which may be negative; its mean over prefixes estimates the mean squared
        error. The second term is the noise that `(s - \bar r)^2` adds for finite K; it vanishes as 1/K.

    Raises:
        `ValueError`: if the shapes do not fit, or there is a single continuation.

    Source: the variance of a mean of K, by its unbiased estimate (Bessel's correction).
    """
    rewards = _checked(scores, rewards)
    return (scores.double() - rewards.mean(-1)).square() - rewards.var(-1, correction=1) / rewards.shape[-1]


def bootstrap_value_noise(
    rewards: Tensor, eta: float, num_resamples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""
    Bias and variance of the finite-K estimate of the entropy-regularised value, by resampling the K continuations.

    `bias = K / (K - 1) (mean_b V_eta(r*_b) - V_eta(r))`, `variance = K / (K - 1) var_b V_eta(r*_b)`, with `r*_b` K
    rewards drawn from a prefix's own with replacement; the factor is what drawing from K instead of from the policy
    loses of the rewards' variance

    Args:
        rewards (`torch.Tensor`):
            Rewards of K independent continuations a prefix, shape (P, K), K >= 2.
        eta (`float`):
            Inverse reward temperature, finite: the bootstrap says nothing about a maximum or a minimum.
        num_resamples (`int`, *optional*, defaults to `200`):
            Resamples, at least 2.
        seed (`int`, *optional*, defaults to `0`):
            The same seed and shape resample the same continuations.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: bias and variance, float64 of shape (P,).

    Raises:
        `ValueError`: for an infinite eta, a single continuation, or fewer than two resamples.

    Limits: at eta = 0 the variance is the unbiased one of [`squared_error_without_noise`] and the bias is 0, up to the
    noise of the resamples. Rewards that are all equal have neither: a prefix whose successes are
    too rare to be seen among K still looks exact.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    rewards = _checked(rewards[..., 0], rewards)
    if not math.isfinite(eta):
        raise ValueError(f"`eta` is {eta}: expected a finite number. The noise of a maximum cannot be bootstrapped.")
    if num_resamples < 2:
        raise ValueError(f"`num_resamples` is {num_resamples}: expected at least 2. Pass 200 or more.")
    generator = torch.Generator().manual_seed(seed)
    values = soft_value(rewards, eta)
    sums, squares = torch.zeros_like(values), torch.zeros_like(values)
    for _ in range(num_resamples):  # one at a time: (P, K) numbers held at once
        drawn = torch.randint(rewards.shape[-1], rewards.shape, generator=generator).to(rewards.device)
        off = soft_value(rewards.gather(-1, drawn), eta) - values
        sums += off
        squares += off.square()
    mean = sums / num_resamples
    variance = (squares / num_resamples - mean.square()).clamp_min(0) * num_resamples / (num_resamples - 1)
    unshrunk = rewards.shape[-1] / (rewards.shape[-1] - 1)
    return unshrunk * mean, unshrunk * variance


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
    noise of K exactly ([`squared_error_without_noise`]) whatever eta is.
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


def _checked(scores: Tensor, rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or scores.shape != rewards.shape[:1]:
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `rewards` {tuple(rewards.shape)}: expected (P,) and "
            "(P, K). Give one row of rewards a score."
        )
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"`rewards` has {rewards.shape[-1]} continuations a prefix: expected at least 2 to know their noise. "
            "Collect with num_continuations >= 2."
        )
    return rewards.double()
