"""Sampling in proportion to exponential weights, for guided search. Computed with numpy in log space."""

import math

import numpy as np


def tilted_probabilities(values: np.ndarray, eta: float) -> np.ndarray:
    """
    `softmax(eta * values)`, including its limits: at `inf` the largest values share the probability evenly, and at
    `-inf` the smallest values.

    Args:
        values (`np.ndarray`):
            Finite values of shape (M,).
        eta (`float`):
            Inverse reward temperature in [-inf, inf].

    Returns:
        `np.ndarray`: probabilities, float64 of shape (M,).
    """
    values = np.asarray(values, dtype=np.float64)
    if math.isinf(eta):
        weights = (values == (values.max() if eta > 0 else values.min())).astype(np.float64)
    else:
        logits = eta * values
        weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def log_mean_exp(log_weights: np.ndarray) -> float:
    """
    `log(mean(exp(log_weights)))` without overflow. It equals [`~erprm_trl.functional.soft_value`] at eta = 1.

    Args:
        log_weights (`np.ndarray`):
            Log-weights of shape (N,).

    Returns:
        `float`: the log of the mean weight.
    """
    top = log_weights.max()
    return float(top + np.log(np.exp(log_weights - top).mean()))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """
    Effective sample size `(sum of w)^2 / sum of w^2`.

    Args:
        log_weights (`np.ndarray`):
            Log-weights of shape (N,), up to an additive constant.

    Returns:
        `float`: a number from 1 (one particle has all the weight) to N (equal weights).

    Source: Kong, Liu and Wong (1994).
    """
    weights = tilted_probabilities(log_weights, 1.0)
    return float(1.0 / np.square(weights).sum())


def systematic_resample(log_weights: np.ndarray, offset: float) -> np.ndarray:
    """
    Systematic resampling: chooses N of N particles by N evenly spaced points with one common offset. Particle i with
    normalised weight `w_i` is chosen `floor(N w_i)` or `ceil(N w_i)` times, and `N w_i` times on average.

    Args:
        log_weights (`np.ndarray`):
            Log-weights of shape (N,), up to an additive constant.
        offset (`float`):
            Random number, uniform in [0, 1).

    Returns:
        `np.ndarray`: N indices in ascending order.

    Source: Carpenter, Clifford and Fearnhead (1999).
    """
    upper = np.cumsum(tilted_probabilities(log_weights, 1.0))
    # An offset just below 1 may round the last point to 1, so points are kept below 1. The cumulative sum is divided
    # by its last entry, so that it ends at exactly 1, above every point.
    points = np.minimum((offset + np.arange(len(upper))) / len(upper), np.nextafter(1.0, 0.0))
    return np.searchsorted(upper / upper[-1], points, side="right")
