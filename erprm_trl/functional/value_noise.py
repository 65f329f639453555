"""Compares scores with values of prefixes that are estimated from K noisy rewards each.

The functions estimate how far the scores are from the values once the noise of K rewards is removed, and how much
closer they get after recalibration, which fits a scale and a shift of their log-odds. Pure tensor functions in
float64, with one row per prefix.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .soft_values import soft_value


_MAX_STEPS = 100  # Newton's method usually needs fewer than ten
_TOLERANCE = 1e-10


def squared_error_without_noise(scores: Tensor, rewards: Tensor) -> Tensor:
    r"""
    Unbiased estimate of the squared difference between a score and the expected reward of a prefix (eta = 0).

    $$ (s - \bar r)^2 - \frac{1}{K (K - 1)} \sum_{k=1}^{K} (r_k - \bar r)^2 $$

    Args:
        scores (`torch.Tensor`):
            One score s per prefix, of shape (P,) and any range.
        rewards (`torch.Tensor`):
            Rewards r of K >= 2 independent continuations per prefix, of shape (P, K) and any finite range.

    Returns:
        `torch.Tensor`: float64 of shape (P,), which may be negative. Its mean over prefixes estimates the mean squared
        error. The second term removes the noise that finite K adds to `(s - \bar r)^2`. It decreases as 1/K.

    Raises:
        `ValueError`: if the shapes do not match, or there are fewer than two continuations.

    Source: the unbiased estimate (Bessel's correction) of the variance of a mean of K rewards.
    """
    rewards = _checked_rewards(scores, rewards)
    return (scores.double() - rewards.mean(-1)).square() - rewards.var(-1, correction=1) / rewards.shape[-1]


def bootstrap_value_noise(
    rewards: Tensor, eta: float, num_resamples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""
    Bias and variance of the finite-K estimate of the entropy-regularised value, estimated by bootstrap.

    `bias = K / (K - 1) (mean_b V_eta(r*_b) - V_eta(r))`, `variance = K / (K - 1) var_b V_eta(r*_b)`, where `r*_b` are
    K rewards drawn with replacement from the K rewards of the prefix. The factor K / (K - 1) corrects for drawing from
    K rewards instead of from the policy, which makes the variance too small.

    Args:
        rewards (`torch.Tensor`):
            Rewards of K >= 2 independent continuations per prefix, of shape (P, K).
        eta (`float`):
            Inverse reward temperature, finite. The bootstrap does not work for a maximum or a minimum.
        num_resamples (`int`, *optional*, defaults to `200`):
            Number of resamples, at least 2.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling. The same seed and shape resample the same continuations.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: bias and variance, float64 of shape (P,).

    Raises:
        `ValueError`: for an infinite eta, a single continuation, or fewer than two resamples.

    Limits: at eta = 0 the variance equals the second term of [`squared_error_without_noise`] and the bias is 0, up to
    the noise of the resampling. If all rewards of a prefix are equal, both are 0. A prefix with successes that are too
    rare to appear among K continuations therefore looks exact.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    rewards = _checked_rewards(rewards[..., 0], rewards)
    if not math.isfinite(eta):
        raise ValueError(
            f"`eta` is {eta}: expected a finite number, because the noise of a maximum cannot be bootstrapped. Pass a "
            "finite eta."
        )
    if num_resamples < 2:
        raise ValueError(f"`num_resamples` is {num_resamples}: expected at least 2. Pass 200 or more.")
    generator = torch.Generator().manual_seed(seed)
    values = soft_value(rewards, eta)
    sums, squares = torch.zeros_like(values), torch.zeros_like(values)
    for _ in range(num_resamples):  # one resample at a time, so that only (P, K) values are in memory
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
    Fits the scale and the shift of the scores' log-odds that minimise the cross-entropy with the labels.

    `min_{a, b} mean_i -[y_i log p_i + (1 - y_i) log(1 - p_i)] + penalty / 2 ((a - 1)^2 + b^2)`, with
    `p_i = sigmoid(a logit(s_i) + b)`

    Args:
        scores (`torch.Tensor`):
            Probabilities of any shape. They are clamped to [1e-6, 1 - 1e-6].
        labels (`torch.Tensor`):
            Soft or hard labels in [0, 1], of the same shape.
        penalty (`float`, *optional*, defaults to `1e-3`):
            Strength of the shrinkage towards the identity map. Without it, perfectly separated scores would give an
            infinite scale.

    Returns:
        `tuple[float, float]`: scale `a` and shift `b`. (1, 0) does not change the scores. The scores are overconfident
        if `a` is below 1, and underconfident if it is above 1.

    Limits: scores that equal the labels give (1, 0). Constant scores are mapped to the mean label, up to the penalty.

    Source: Platt (1999), "Probabilistic outputs for support vector machines", on log-odds and with soft labels.
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
        # A Newton step may overshoot the minimum of a convex function, so it is halved until the loss decreases.
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
    Applies the scale and the shift of [`fit_recalibration`] to the log-odds of scores.

    `sigmoid(scale logit(s) + shift)`

    Args:
        scores (`torch.Tensor`):
            Probabilities of any shape. They are clamped to [1e-6, 1 - 1e-6].
        scale (`float`), shift (`float`):
            Scale and shift of the log-odds. A positive scale keeps the order of the scores.

    Returns:
        `torch.Tensor`: recalibrated scores in (0, 1) of the same shape, in float64.
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
            f"`rewards` has {rewards.shape[-1]} continuations per prefix: expected at least 2 to estimate their "
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
