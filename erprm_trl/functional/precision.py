"""The precision that tensor functions compute in: float32 at least, and float64 where the caller has it."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """
    Values in float32, or in float64 where they already are.

    Half precision is widened because sums and differences of log-probabilities lose their digits in it; integers and
    booleans are read as numbers.

    Args:
        values (`torch.Tensor`):
            Values of any shape and dtype.

    Returns:
        `torch.Tensor`: the same values; the input itself where its dtype is float32 or float64.
    """
    return values if values.dtype == torch.float64 else values.to(torch.float32)
