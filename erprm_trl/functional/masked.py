"""Means, variances and whitening over masked tensors: of each row, or of all processes together. Pure tensor
functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import at_least_float32


Reduce = Callable[[Tensor], Tensor]


def masked_moments(
    values: Tensor, mask: Tensor, all_reduce: Reduce | None = None, *, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""
    Count, mean and variance of the values where the mask is True: of all processes together, or along one axis.

    $$ n = \sum m, \qquad \mu = \frac{1}{n} \sum m x, \qquad \sigma^2 = \frac{1}{n - 1} \sum m (x - \mu)^2 $$

    Args:
        values (`torch.Tensor`):
            Values of any shape; what the mask hides is never read, NaN included.
        mask (`torch.Tensor`):
            Booleans of the same shape.
        all_reduce (`Callable`, *optional*):
            Sums a tensor over processes, e.g. `lambda x: accelerator.reduce(x, "sum")`. Sums and counts are reduced,
            never means, so that the result does not depend on how rows are spread.
        dim (`int`, *optional*):
            Axis to reduce, e.g. -1 for the moments of each row. It is kept with length 1. Defaults to all axes.

    Returns:
        `tuple`: three tensors, float32 or float64 where the input is: scalars, or the shape of `values` with length 1
        along `dim`. Without values the mean is 0; with fewer than two the variance is 0.
    """

    def total(terms: Tensor) -> Tensor:
        return terms.sum() if dim is None else terms.sum(dim, keepdim=True)

    values, mask = at_least_float32(values), mask.bool()
    kept = values.masked_fill(~mask, 0.0)
    sums = torch.stack([total(mask).to(values.dtype), total(kept)])
    sums = all_reduce(sums) if all_reduce else sums
    count, mean = sums[0], sums[1] / sums[0].clamp_min(1)
    # A second pass: sums of squares would lose the small variance of large values.
    squares = total((kept - mean).square().masked_fill(~mask, 0.0))
    squares = all_reduce(squares) if all_reduce else squares
    return count, mean, squares / (count - 1).clamp_min(1)


def masked_whiten(values: Tensor, mask: Tensor, all_reduce: Reduce | None = None, eps: float = 1e-8) -> Tensor:
    r"""
    Zero mean and unit variance over the masked values of all processes: \\( (x - \mu) / \sqrt{\sigma^2 + \epsilon}
    \\). What the mask hides becomes 0.

    Args:
        values (`torch.Tensor`), mask (`torch.Tensor`), all_reduce (`Callable`, *optional*):
            See [`masked_moments`].
        eps (`float`, *optional*, defaults to `1e-8`):
            Added to the variance.

    Returns:
        `torch.Tensor`: the shape of `values`, float32 or float64 where the input is.
    """
    _, mean, variance = masked_moments(values, mask, all_reduce)
    return ((at_least_float32(values) - mean) * torch.rsqrt(variance + eps)).masked_fill(~mask.bool(), 0.0)


def explained_variance(predictions: Tensor, targets: Tensor, mask: Tensor, all_reduce: Reduce | None = None) -> Tensor:
    r"""
    Share of the targets' variance that predictions explain: \\( 1 - \mathrm{Var}(R - V) / \mathrm{Var}(R) \\), at most
    1, 0 for a constant, NaN where the targets do not vary.

    Args:
        predictions, targets, mask (`torch.Tensor`):
            The same shape.
        all_reduce (`Callable`, *optional*):
            See [`masked_moments`].
    """
    _, mean, of_targets = masked_moments(targets, mask, all_reduce)
    _, _, of_errors = masked_moments(at_least_float32(targets) - at_least_float32(predictions), mask, all_reduce)
    # The mean of equal numbers is itself rounded, so that their variance need not be 0.
    rounding = (32 * torch.finfo(mean.dtype).eps * mean).square()
    return torch.where(of_targets > rounding, 1 - of_errors / of_targets, torch.nan)
