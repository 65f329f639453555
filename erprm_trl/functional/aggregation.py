"""Aggregates step scores into one score per solution: min, last, product or mean. Pure tensor functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import at_least_float32


AGGREGATIONS = ("min", "last", "product", "mean")


def aggregate(scores: Tensor | Sequence[Sequence[float] | Tensor], method: str, mask: Tensor | None = None) -> Tensor:
    r"""
    Computes the score of each solution from the scores of its steps.

    | method | score of a solution with step scores \\( s_1 \dots s_L \\) |
    |---|---|
    | `"min"` | \\( \min_l s_l \\) (the paper's choice) |
    | `"last"` | \\( s_L \\) |
    | `"product"` | \\( \prod_l s_l \\) |
    | `"mean"` | \\( \frac{1}{L} \sum_l s_l \\) |

    Args:
        scores (`torch.Tensor` or sequence of sequences):
            Step scores, either as one tensor (..., S), padded if solutions differ in length, or as one sequence of
            scores per solution.
        method (`str`):
            One of `"min"`, `"last"`, `"product"`, `"mean"`.
        mask (`torch.Tensor`, *optional*):
            Booleans of the shape of `scores`, True at real steps. Needed only if there is padding. Padded values are
            never read.

    Returns:
        `torch.Tensor`: scores of shape (...), or (N,) for N sequences, in float32, or in float64 if the input is.

    Raises:
        `ValueError`: for an unknown method, a mask of another shape, or a solution without steps. The message names
        the row of that solution.

    Source: arXiv 2412.11006, section 4 (min); Wang et al., Math-Shepherd (2312.08935), section 3.4.
    """
    if method not in AGGREGATIONS:
        raise ValueError(f"Aggregation: got {method!r}, expected one of {', '.join(AGGREGATIONS)}. Pass one of these.")
    if not isinstance(scores, Tensor):
        scores, mask = _pad(scores)
    scores = at_least_float32(scores)
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape != scores.shape:
        raise ValueError(
            f"Mask: got shape {tuple(mask.shape)}, expected the shape of the scores, {tuple(scores.shape)}. Give one "
            "boolean per score."
        )
    num_steps = mask.sum(-1)
    if not bool((num_steps > 0).all()):
        row = (num_steps.reshape(-1) == 0).nonzero()[0].item()
        raise ValueError(f"Solution {row}: got no steps, expected at least one. Drop solutions without steps first.")

    if method == "min":
        return scores.masked_fill(~mask, torch.inf).amin(-1)
    if method == "last":
        positions = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        last = positions.masked_fill(~mask, -1).argmax(-1, keepdim=True)
        return scores.gather(-1, last).squeeze(-1)
    if method == "product":
        return scores.masked_fill(~mask, 1.0).prod(-1)
    return scores.masked_fill(~mask, 0.0).sum(-1) / num_steps


def _pad(scores: Sequence[Sequence[float] | Tensor]) -> tuple[Tensor, Tensor]:
    rows = [torch.as_tensor(row) for row in scores]
    rows = [row if row.is_floating_point() else row.float() for row in rows]
    if not rows:
        return torch.zeros(0, 1), torch.ones(0, 1, dtype=torch.bool)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
