"""Percentile bootstrap over questions, for the `..._per_question` arrays of this folder: how far would the mean move
with other questions from the same source? Noise from a question's solutions, and from training seeds, is left out."""

from collections.abc import Sequence

import numpy as np


# Resampled numbers held at once: 32 MiB of float64, whatever the number of questions and resamples.
_MAX_NUMBERS = 2**22


def bootstrap_interval(
    per_question: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean over questions.

    Questions are drawn with replacement `num_resamples` times; the interval holds the middle `level` of their means.
    With very few questions it is too narrow, and with one question it is a point.

    Args:
        per_question (`Sequence[float]`):
            One finite number a question: a list, or a column of one of the `..._per_question` arrays.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage, strictly between 0 and 1.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Number of resampled sets of questions.
        seed (`int`, *optional*, defaults to `0`):
            The same seed and the same number of questions resample the same rows.

    Returns:
        `tuple[float, float]`: lower and upper end.
    """
    values = _finite_vector(per_question, "per_question")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` is {level}: expected a share strictly between 0 and 1. Pass 0.95 for 95%.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` is {num_resamples}: expected at least 1. Pass 1000 or more.")
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_NUMBERS // len(values))
    means = []
    for start in range(0, num_resamples, chunk):
        size = (min(chunk, num_resamples - start), len(values))
        means.append(values[rng.integers(len(values), size=size)].mean(axis=1))
    lower, upper = np.quantile(np.concatenate(means), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(lower), float(upper)


def paired_bootstrap_interval(
    left: Sequence[float], right: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean of `left - right` on the same questions.

    Narrower than the two separate intervals suggest whenever both methods find the same questions hard. An interval
    that leaves out 0 tells the methods apart at this `level`.

    Args:
        left (`Sequence[float]`), right (`Sequence[float]`):
            One finite number a question each, in the same order.
        level (`float`, *optional*), num_resamples (`int`, *optional*), seed (`int`, *optional*):
            As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float]`: lower and upper end.
    """
    left_Q, right_Q = _finite_vector(left, "left"), _finite_vector(right, "right")
    if len(left_Q) != len(right_Q):
        raise ValueError(
            f"`left` has {len(left_Q)} numbers and `right` has {len(right_Q)}: expected one a question in both. Pass "
            "the same questions in the same order."
        )
    return bootstrap_interval(left_Q - right_Q, level=level, num_resamples=num_resamples, seed=seed)


def _finite_vector(values: Sequence[float], subject: str) -> np.ndarray:
    values_Q = np.asarray(values, dtype=np.float64)
    if values_Q.ndim != 1 or not values_Q.size:
        raise ValueError(
            f"`{subject}` has shape {values_Q.shape}: expected one number a question, at least one question. Pass one "
            "column at a time."
        )
    bad = np.flatnonzero(~np.isfinite(values_Q))
    if bad.size:
        raise ValueError(
            f"`{subject}` is {values_Q[bad[0]]} at row {bad[0]}: expected finite numbers. Leave the question out of "
            "every method compared, and say so in the report."
        )
    return values_Q
