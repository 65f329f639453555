"""The loss that a process reward model minimises: cross-entropy with soft labels at the step separators. Pure tensor
functions."""

from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_float32


def step_log_odds(logits: Tensor) -> Tensor:
    r"""
    Log-odds that a step is good: \\( z = \log p(+) - \log p(-) \\). The step's score is sigmoid(z).

    Args:
        logits (`torch.Tensor`):
            Either the logits of the good and the bad token, in this order and of shape (..., 2), or the single logit
            of a scalar head, of shape (..., 1).

    Returns:
        `torch.Tensor`: log-odds of shape (...), in float32, or in float64 if the input is. For two logits, the sigmoid
        of their difference is the softmax probability of the good token.

    Raises:
        `ValueError`: if the length of the last axis is neither 1 nor 2.
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
            Logits at the separators, of shape (..., 2) or (..., 1), see [`step_log_odds`].
        labels (`torch.Tensor`):
            Soft labels v in [0, 1], of shape (...). The range is not checked here, because the check would make the
            accelerator wait for the CPU in every training step. Check labels once, when they are made.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over all steps, or `"none"` to return the loss of each step.

    Returns:
        `torch.Tensor`: the loss in nats, a scalar, or of shape (...) with `reduction="none"`. It is float32, or
        float64 if the logits are. The loss is at least the entropy of the label, and equals it if the score equals the
        label.

    Raises:
        `ValueError`: if the shapes do not match.

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
    Label smoothing: moves labels towards one half.

    $$ v' = (1 - s) v + \frac{s}{2} $$

    Args:
        labels (`torch.Tensor`):
            Soft labels v in [0, 1], of any shape.
        smoothing (`float`):
            Strength s in [0, 1]. 0 does not change the labels, 1 sets all of them to one half.

    Returns:
        `torch.Tensor`: labels of the same shape, in [s / 2, 1 - s / 2].

    Source: arXiv 1512.00567, section 7, for two classes.
    """
    return labels * (1 - smoothing) + smoothing / 2
