"""Intervals over seeds for the benchmarks."""

import math
from collections.abc import Sequence


# Two-sided 95% quantiles of Student's t, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% t-interval. The half-width is NaN for a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, T_95[len(values) - 1] * deviation / math.sqrt(len(values))
