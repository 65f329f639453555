"""Soft-label losses at separators: what a process reward model minimises. Pure tensor functions."""

from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_float32


def step_log_odds(logits: Tensor) -> Tensor:
    r"""
    Log-odds that a step is good, in float32 or better: \\( z = \log p(+) - \log p(-) \\), so that the step's score is
    sigmoid(z).

    Args:
        logits (`torch.Tensor`):
            Either (..., 2), the good and the bad token's logits in this order, or (..., 1), one logit of a scalar
            head.

    Returns:
        `torch.Tensor`: log-odds of shape (...). A softmax over two logits is the sigmoid of their difference.

    Raises:
        `ValueError`: if the last axis holds neither one logit nor two.
    """
    if logits.ndim == 0 or logits.shape[-1] not in (1, 2):
        raise ValueError(
            f"Step logits: got shape {tuple(logits.shape)}, expected a last axis of 2 (good, bad) or 1 (scalar head). "
            "Select the good and the bad token's columns, or unsqueeze(-1) a single logit."
        )
    logits = at_least_float32(logits)
    return logits[..., 0] - logits[..., 1] if logits.shape[-1] == 2 else logits[..., 0]


def soft_step_cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    r"""
    Cross-entropy of step scores against soft labels.

    $$ \ell = -\left[ v \log p(+) + (1 - v) \log p(-) \right] $$

    Args:
        logits (`torch.Tensor`):
            Logits at the separators, (..., 2) good and bad token or (..., 1) scalar head (see [`step_log_odds`]).
        labels (`torch.Tensor`):
            Soft labels v, shape (...), in [0, 1]. The range is not checked here: that would make an accelerator wait
            for the CPU in every step of the training. Check labels once, when they are made.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over all steps, or `"none"`.

    Returns:
        `torch.Tensor`: the loss in nats, a scalar, or shape (...) with `reduction="none"`; float32 whatever the
        logits' dtype (float64 stays float64). It is at least the labels' own entropy, and equals it where the score is
        the label.

    Raises:
        `ValueError`: if shapes do not match.

    Source: arXiv 2412.11006, the training objective (cross-entropy with the soft process reward as target).
    """
    log_odds = step_log_odds(logits)
    if labels.shape != log_odds.shape:
        raise ValueError(
            f"Labels: got shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}, expected "
            f"{tuple(log_odds.shape)}. Give one label per step."
        )
    return F.binary_cross_entropy_with_logits(log_odds, labels.to(log_odds.dtype), reduction=reduction)


def smoothed_labels(labels: Tensor, smoothing: float) -> Tensor:
    r"""
    Labels drawn towards one half.

    $$ v' = (1 - s) v + \frac{s}{2} $$

    Args:
        labels (`torch.Tensor`):
            Soft labels v in [0, 1], of any shape.
        smoothing (`float`):
            s in [0, 1]: 0 leaves labels as they are, 1 makes all of them one half.

    Returns:
        `torch.Tensor`: Labels of the same shape, in [s / 2, 1 - s / 2].

    Source: arXiv 1512.00567, section 7, for two classes.
    """
    return labels * (1 - smoothing) + smoothing / 2
