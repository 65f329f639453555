"""The precision in which tensor functions compute: at least float32, and float64 if the input is float64."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """
    Converts values to float32. float64 stays float64.

    Half precision is widened because sums and differences of log-probabilities lose their digits in it. Integers and
    booleans are converted too.

    Args:
        values (`torch.Tensor`):
            Values of any shape and dtype.

    Returns:
        `torch.Tensor`: the same values. If the dtype is float32 or float64, this is the input tensor itself.
    """
    return values if values.dtype == torch.float64 else values.to(torch.float32)
