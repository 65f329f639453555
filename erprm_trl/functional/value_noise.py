"""Scores compared with values of prefixes that are known from K noisy rewards each.

Two questions are answered. How far are scores from the values, once the noise of K rewards is taken off? And how much
closer do they come when a scale and a shift of their log-odds are fitted (recalibration)? Pure tensor functions in
float64; one row per prefix.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .soft_values import soft_value


_MAX_STEPS = 100  # of Newton's method, which needs fewer than ten
_TOLERANCE = 1e-10


def squared_error_without_noise(scores: Tensor, rewards: Tensor) -> Tensor:
    r"""
    Unbiased estimate of the squared distance between a score and a prefix's expected reward (eta = 0), from K rewards.

    $$ (s - \bar r)^2 - \frac{1}{K (K - 1)} \sum_{k=1}^{K} (r_k - \bar r)^2 $$

    Args:
        scores (`torch.Tensor`):
            One number per prefix, shape (P,), any range.
        rewards (`torch.Tensor`):
            Rewards of its K independent continuations, shape (P, K), K >= 2, any finite range.

    Returns:
        `torch.Tensor`: float64 of shape (P,), which may be negative; its mean over prefixes estimates the mean squared
        error. The second term is the noise that `(s - \bar r)^2` adds for finite K; it vanishes as 1/K.

    Raises:
        `ValueError`: if the shapes do not fit, or there is a single continuation.

    Source: the variance of a mean of K, by its unbiased estimate (Bessel's correction).
    """
    rewards = _checked_rewards(scores, rewards)
    return (scores.double() - rewards.mean(-1)).square() - rewards.var(-1, correction=1) / rewards.shape[-1]


def bootstrap_value_noise(
    rewards: Tensor, eta: float, num_resamples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""
    Bias and variance of the finite-K estimate of the entropy-regularised value, by resampling the K continuations.

    `bias = K / (K - 1) (mean_b V_eta(r*_b) - V_eta(r))`, `variance = K / (K - 1) var_b V_eta(r*_b)`, with `r*_b` K
    rewards drawn from a prefix's own with replacement. The factor restores the part of the rewards' variance that is
    lost by drawing from K rewards instead of from the policy.

    Args:
        rewards (`torch.Tensor`):
            Rewards of K independent continuations per prefix, shape (P, K), K >= 2.
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
    noise of the resamples. Rewards that are all equal have neither: a prefix whose successes are too rare to be seen
    among K still looks exact.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    rewards = _checked_rewards(rewards[..., 0], rewards)
    if not math.isfinite(eta):
        raise ValueError(f"`eta` is {eta}: expected a finite number. The noise of a maximum cannot be bootstrapped.")
    if num_resamples < 2:
        raise ValueError(f"`num_resamples` is {num_resamples}: expected at least 2. Pass 200 or more.")
    generator = torch.Generator().manual_seed(seed)
    values = soft_value(rewards, eta)
    sums, squares = torch.zeros_like(values), torch.zeros_like(values)
    for _ in range(num_resamples):  # one at a time, so that only (P, K) numbers are held at once
        drawn = torch.randint(rewards.shape[-1], rewards.shape, generator=generator).to(rewards.device)
        off = soft_value(rewards.gather(-1, drawn), eta) - values
        sums += off
        squares += off.square()
    mean = sums / num_resamples
    variance = (squares / num_resamples - mean.square()).clamp_min(0) * num_resamples / (num_resamples - 1)
    unshrunk = rewards.shape[-1] / (rewards.shape[-1] - 1)
    return unshrunk * mean, unshrunk * variance


def fit_recalibration(scores: Tensor, labels: Tensor, penalty: float = 1e-3) -> tuple[float, float]:
    """
    Scale and shift of the scores' log odds that minimise the cross-entropy to the labels.

    `min_{a, b} mean_i -[y_i log p_i + (1 - y_i) log(1 - p_i)] + penalty / 2 ((a - 1)^2 + b^2)`, with
    `p_i = sigmoid(a logit(s_i) + b)`

    Args:
        scores (`torch.Tensor`):
            Probabilities in [0, 1], any shape. 0 and 1 are read as 1e-6 away from there.
        labels (`torch.Tensor`):
            Soft or hard labels in [0, 1], of the same shape.
        penalty (`float`, *optional*, defaults to `1e-3`):
            Shrinks towards the identity map. Without it, perfectly separated scores would give an infinite scale.

    Returns:
        `tuple[float, float]`: scale `a` and shift `b`; (1, 0) leaves the scores as they are.

    Limits: scores that equal the labels give (1, 0); constant scores give the labels' mean, short of the penalty. `a`
    below 1 says that the scores are overconfident, above 1 that they are underconfident.

    Source: Platt (1999), "Probabilistic outputs for support vector machines", on log odds and with soft labels.
    """
    log_odds, labels = _log_odds(scores).flatten(), labels.double().flatten()
    features = torch.stack([log_odds, torch.ones_like(log_odds)], dim=1)
    start = weights = torch.tensor([1.0, 0.0], dtype=torch.float64, device=log_odds.device)
    loss = _penalised_cross_entropy(features, labels, weights, start, penalty)
    for _ in range(_MAX_STEPS):
        p = (features @ weights).sigmoid()
        gradient = features.T @ (p - labels) / len(labels) + penalty * (weights - start)
        curvature = (features.T * (p * (1 - p))) @ features / len(labels)
        step = torch.linalg.solve(curvature + penalty * torch.eye(2).to(curvature), gradient)
        # Newton's step may pass the minimum of a convex function: halved until it goes down.
        size = 1.0
        while size > 1e-6 and _penalised_cross_entropy(features, labels, weights - size * step, start, penalty) > loss:
            size /= 2
        weights = weights - size * step
        loss = _penalised_cross_entropy(features, labels, weights, start, penalty)
        if (size * step).abs().max() < _TOLERANCE:
            break
    return weights[0].item(), weights[1].item()


def recalibrate(scores: Tensor, scale: float, shift: float) -> Tensor:
    """
    Scores with the scale and shift of [`fit_recalibration`] applied to their log odds.

    `sigmoid(scale logit(s) + shift)`

    Args:
        scores (`torch.Tensor`):
            Probabilities in [0, 1], any shape. 0 and 1 are read as 1e-6 away from there.
        scale (`float`), shift (`float`):
            Any numbers; a positive scale keeps the order.

    Returns:
        `torch.Tensor`: float64 of the same shape, in (0, 1).
    """
    return (scale * _log_odds(scores) + shift).sigmoid()


def _checked_rewards(scores: Tensor, rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or scores.shape != rewards.shape[:1]:
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `rewards` {tuple(rewards.shape)}: expected (P,) and "
            "(P, K). Give one row of rewards per score."
        )
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"`rewards` has {rewards.shape[-1]} continuations per prefix: expected at least 2 to know their "
            "noise. Collect with num_continuations >= 2."
        )
    return rewards.double()


def _log_odds(scores: Tensor) -> Tensor:
    return scores.double().logit(eps=1e-6)


def _penalised_cross_entropy(
    features: Tensor, labels: Tensor, weights: Tensor, start: Tensor, penalty: float
) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(features @ weights, labels)
    return cross_entropy + penalty / 2 * (weights - start).square().sum()
