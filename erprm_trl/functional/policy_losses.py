"""The terms that PPO adds to TRL's policy loss: the clipped value loss and the KL divergence per token. Pure tensor
functions."""

import torch
from torch import Tensor

from .precision import at_least_float32


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    r"""
    Squared error of the critic, with its change since the rollout clipped to `clip_range`.

    $$ \ell_t = \tfrac{1}{2} \max\left[ (V_t - R_t)^2, \left( \mathrm{clip}(V_t, V_t^{old} - \epsilon, V_t^{old} +
    \epsilon) - R_t \right)^2 \right] $$

    Args:
        values (`torch.Tensor`):
            Current values \\( V_t \\) of the critic, (B, T), with gradient.
        old_values (`torch.Tensor`), returns (`torch.Tensor`):
            Values \\( V_t^{old} \\) at the time of the rollout, and its returns \\( R_t \\), (B, T).
        clip_range (`float` or `None`):
            Largest change \\( \epsilon > 0 \\), in units of reward. `None` does not clip.

    Returns:
        `tuple`: losses (B, T) in float32, and booleans (B, T) that are True where clipping removed the gradient.

    Source: Schulman et al., PPO (1707.06347) as implemented in OpenAI's baselines and TRL's former `PPOTrainer`.
    """
    values, old_values, returns = map(at_least_float32, (values, old_values, returns))
    losses = (values - returns).square()
    if clip_range is None:
        return losses / 2, torch.zeros_like(losses, dtype=torch.bool)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped_losses = (clipped - returns).square()
    # The first condition is needed because inside the range, old + (V - old) may differ from V by rounding.
    is_clipped = ((values - old_values).abs() > clip_range) & (clipped_losses > losses)
    return torch.maximum(losses, clipped_losses) / 2, is_clipped


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: str) -> Tensor:
    r"""
    Estimates the KL divergence per token from tokens that the policy sampled.

    | estimator | with \\( d = \log \pi - \log \pi_{ref} \\) | properties and use |
    |---|---|---|
    | `"k1"` | \\( d \\) | unbiased, may be negative; used as a penalty in the reward |
    | `"k3"` | \\( e^{-d} - 1 + d \\) | unbiased, never negative; used as a loss or a metric |

    Args:
        logps (`torch.Tensor`), ref_logps (`torch.Tensor`):
            Log-probabilities of the sampled tokens under the policy and the reference policy, of the same shape.
        estimator (`str`):
            `"k1"` or `"k3"`.

    Returns:
        `torch.Tensor`: estimates of the same shape, in float32, or in float64 if the input is.

    Raises:
        `ValueError`: for an unknown estimator.

    Source: J. Schulman, "Approximating KL divergence" (2020); Shao et al., DeepSeekMath (2402.03300), equation 4.
    """
    if estimator not in ("k1", "k3"):
        raise ValueError(f"KL estimator: got {estimator!r}, expected 'k1' or 'k3'. Pass one of these two.")
    logps = at_least_float32(logps)
    difference = logps - ref_logps.to(logps.dtype)
    return difference if estimator == "k1" else torch.expm1(-difference) + difference
