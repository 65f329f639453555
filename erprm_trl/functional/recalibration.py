"""Two numbers that make scores better probabilities without changing their order. Pure tensor functions in float64."""

import torch
from torch import Tensor


_MAX_STEPS = 100
_TOLERANCE = 1e-10


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
            Pulls towards leaving the scores as they are: keeps scores that part the labels perfectly finite.

    Returns:
        `tuple[float, float]`: scale `a` and shift `b`; (1, 0) leaves the scores as they are.

    Limits: scores that equal the labels give (1, 0); constant scores give the labels' mean, short of the penalty. `a`
    below 1 says that scores are too sure of themselves, above 1 not sure enough.

    Source: Platt (1999), "Probabilistic outputs for support vector machines", on log odds and with soft labels.
    """
    log_odds, labels = _log_odds(scores).flatten(), labels.double().flatten()
    features = torch.stack([log_odds, torch.ones_like(log_odds)], dim=1)
    start = weights = torch.tensor([1.0, 0.0], dtype=torch.float64, device=log_odds.device)
    loss = _loss(features, labels, weights, start, penalty)
    for _ in range(_MAX_STEPS):
        p = (features @ weights).sigmoid()
        gradient = features.T @ (p - labels) / len(labels) + penalty * (weights - start)
        curvature = (features.T * (p * (1 - p))) @ features / len(labels)
        step = torch.linalg.solve(curvature + penalty * torch.eye(2).to(curvature), gradient)
        # Newton's step may pass the minimum of a convex function: halved until it goes down.
        size = 1.0
        while size > 1e-6 and _loss(features, labels, weights - size * step, start, penalty) > loss:
            size /= 2
        weights = weights - size * step
        loss = _loss(features, labels, weights, start, penalty)
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


def _log_odds(scores: Tensor) -> Tensor:
    return scores.double().logit(eps=1e-6)


def _loss(features: Tensor, labels: Tensor, weights: Tensor, start: Tensor, penalty: float) -> Tensor:
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(features @ weights, labels)
    return cross_entropy + penalty / 2 * (weights - start).square().sum()
