"""Mean, variance and whitening of masked tensors, per row or over all processes. Pure tensor functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import at_least_float32


Reduce = Callable[[Tensor], Tensor]


def masked_moments(
    values: Tensor, mask: Tensor, all_reduce: Reduce | None = None, *, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""
    Count, mean and variance of the values where the mask is True, over all processes or along one axis.

    $$ n = \sum m, \qquad \mu = \frac{1}{n} \sum m x, \qquad \sigma^2 = \frac{1}{n - 1} \sum m (x - \mu)^2 $$

    Args:
        values (`torch.Tensor`):
            Values of any shape. Masked values are never read, so they may be NaN.
        mask (`torch.Tensor`):
            Booleans of the same shape.
        all_reduce (`Callable`, *optional*):
            Function that sums a tensor over processes, e.g. `lambda x: accelerator.reduce(x, "sum")`. It receives sums
            and counts, never means, so the result does not depend on how rows are distributed over processes.
        dim (`int`, *optional*):
            Axis to reduce, e.g. -1 for the moments of each row. It is kept with length 1. Defaults to all axes.

    Returns:
        `tuple`: count, mean and variance in float32, or in float64 if the input is. They are scalars, or have the
        shape of `values` with length 1 along `dim`. The mean is 0 if there are no values. The variance is 0 if there
        are fewer than two.
    """

    def total(terms: Tensor) -> Tensor:
        return terms.sum() if dim is None else terms.sum(dim, keepdim=True)

    values, mask = at_least_float32(values), mask.bool()
    kept = values.masked_fill(~mask, 0.0)
    sums = torch.stack([total(mask).to(values.dtype), total(kept)])
    sums = all_reduce(sums) if all_reduce else sums
    count, mean = sums[0], sums[1] / sums[0].clamp_min(1)
    # The variance needs a second pass: a plain sum of squares would lose the small variance of large values.
    squares = total((kept - mean).square().masked_fill(~mask, 0.0))
    squares = all_reduce(squares) if all_reduce else squares
    return count, mean, squares / (count - 1).clamp_min(1)


def masked_whiten(values: Tensor, mask: Tensor, all_reduce: Reduce | None = None, eps: float = 1e-8) -> Tensor:
    r"""
    Shifts and scales values to zero mean and unit variance over all processes: \\( (x - \mu) / \sqrt{\sigma^2 +
    \epsilon} \\). Only values where the mask is True count; the others become 0.

    Args:
        values (`torch.Tensor`), mask (`torch.Tensor`), all_reduce (`Callable`, *optional*):
            See [`masked_moments`].
        eps (`float`, *optional*, defaults to `1e-8`):
            Constant added to the variance.

    Returns:
        `torch.Tensor`: whitened values of the same shape, in float32, or in float64 if the input is.
    """
    _, mean, variance = masked_moments(values, mask, all_reduce)
    return ((at_least_float32(values) - mean) * torch.rsqrt(variance + eps)).masked_fill(~mask.bool(), 0.0)


def explained_variance(predictions: Tensor, targets: Tensor, mask: Tensor, all_reduce: Reduce | None = None) -> Tensor:
    r"""
    Share of the targets' variance that the predictions explain: \\( 1 - \mathrm{Var}(R - V) / \mathrm{Var}(R) \\).

    Args:
        predictions (`torch.Tensor`), targets (`torch.Tensor`):
            Predictions V and targets R, of the same shape.
        mask (`torch.Tensor`):
            Booleans of the same shape, True where values count.
        all_reduce (`Callable`, *optional*):
            See [`masked_moments`].

    Returns:
        `torch.Tensor`: a scalar of at most 1. Constant predictions give 0. Targets that do not vary give NaN.
    """
    _, mean, target_variance = masked_moments(targets, mask, all_reduce)
    _, _, error_variance = masked_moments(at_least_float32(targets) - at_least_float32(predictions), mask, all_reduce)
    # The mean of equal values is rounded, so their computed variance may exceed 0.
    rounding = (32 * torch.finfo(mean.dtype).eps * mean).square()
    return torch.where(target_variance > rounding, 1 - error_variance / target_variance, torch.nan)
