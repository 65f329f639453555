"""Percentile bootstrap over questions: the uncertainty of a mean over questions from the same source.

It does not include the noise of a question's solutions or of training seeds. [`bootstrap_interval`] takes the
`..._per_question` arrays of best-of-n and voting. For statistics that a caller resamples itself (ratios of sums,
harmonic means) there is [`mean_and_interval`].
"""

from collections.abc import Sequence

import numpy as np


# Maximum number of resampled values in memory: 32 MiB of float64.
_MAX_NUMBERS = 2**22


def bootstrap_interval(
    per_question: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean over questions.

    Questions are drawn with replacement `num_resamples` times. The interval contains the middle `level` of their
    means. It is too narrow for very few questions, and a single point for one question.

    Args:
        per_question (`Sequence[float]`):
            One finite value per question: a list, or a column of a `..._per_question` array.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage, strictly between 0 and 1.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Number of resampled sets of questions.
        seed (`int`, *optional*, defaults to `0`):
            Random seed. The same seed and number of questions resample the same rows.

    Returns:
        `tuple[float, float]`: lower and upper end.
    """
    values = _finite_vector(per_question, "per_question")
    quantiles = middle_quantiles(level)
    check_num_resamples(num_resamples)
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_NUMBERS // len(values))
    means = []
    for start in range(0, num_resamples, chunk):
        size = (min(chunk, num_resamples - start), len(values))
        means.append(values[rng.integers(len(values), size=size)].mean(axis=1))
    return percentile_interval(np.concatenate(means), quantiles)


def paired_bootstrap_interval(
    left: Sequence[float], right: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean of `left - right` on the same questions.

    The interval is narrower than the two separate intervals suggest if the same questions are hard for both methods.
    The methods differ significantly at this `level` if the interval does not contain 0.

    Args:
        left (`Sequence[float]`):
            One finite value per question for the first method.
        right (`Sequence[float]`):
            One finite value per question for the second method, in the same order.
        level, num_resamples, seed (*optional*):
            See [`bootstrap_interval`].

    Returns:
        `tuple[float, float]`: lower and upper end.
    """
    left_Q, right_Q = _finite_vector(left, "left"), _finite_vector(right, "right")
    if len(left_Q) != len(right_Q):
        raise ValueError(
            f"`left` has {len(left_Q)} values and `right` has {len(right_Q)}: expected one per question in both. "
            "Pass the same questions in the same order."
        )
    return bootstrap_interval(left_Q - right_Q, level=level, num_resamples=num_resamples, seed=seed)


def middle_quantiles(level: float) -> tuple[float, float]:
    """
    The two quantiles around the middle `level` of a distribution.

    Args:
        level (`float`):
            Coverage, strictly between 0 and 1.

    Returns:
        `tuple[float, float]`: (1 - level) / 2 and (1 + level) / 2.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` is {level}: expected a fraction strictly between 0 and 1. Pass 0.95 for 95%.")
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0


def check_num_resamples(num_resamples: int) -> None:
    """Raises a `ValueError` if the number of resamples is below 1."""
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` is {num_resamples}: expected at least 1. Pass 1000 or more.")


def percentile_interval(resampled: np.ndarray, quantiles: tuple[float, float]) -> tuple[float, float]:
    """
    Percentile interval of a statistic from its resamples.

    Args:
        resampled (`np.ndarray`):
            Statistic of each resampled set of questions, of shape (num_resamples,).
        quantiles (`tuple[float, float]`):
            Lower and upper quantile, e.g. from [`middle_quantiles`].

    Returns:
        `tuple[float, float]`: lower and upper end.
    """
    lower, upper = np.quantile(resampled, quantiles)
    return float(lower), float(upper)


def mean_and_interval(mean: float, resampled: np.ndarray, quantiles: tuple[float, float]) -> dict[str, float]:
    """A statistic with its [`percentile_interval`] as `{"mean", "low", "high"}`, for tables and plots."""
    low, high = percentile_interval(resampled, quantiles)
    return {"mean": float(mean), "low": low, "high": high}


def _finite_vector(values: Sequence[float], subject: str) -> np.ndarray:
    values_Q = np.asarray(values, dtype=np.float64)
    if values_Q.ndim != 1 or not values_Q.size:
        raise ValueError(
            f"`{subject}` has shape {values_Q.shape}: expected one value per question, and at least one question. "
            "Pass one column at a time."
        )
    bad = np.flatnonzero(~np.isfinite(values_Q))
    if bad.size:
        raise ValueError(
            f"`{subject}` is {values_Q[bad[0]]} at row {bad[0]}: expected finite numbers. Remove the question from "
            "every method that you compare, and report that."
        )
    return values_Q
