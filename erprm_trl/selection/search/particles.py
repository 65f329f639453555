"""Choosing in proportion to exponential weights: the arithmetic of guided search, in numpy and in log space."""

import math

import numpy as np


def tilted_probabilities(values: np.ndarray, eta: float) -> np.ndarray:
    """
    `softmax(eta * values)`, with its limits: at `inf` the largest values share everything evenly, at `-inf` the
    smallest.

    Args:
        values (`np.ndarray`):
            Finite numbers of shape (M,).
        eta (`float`):
            Inverse reward temperature, in [-inf, inf].

    Returns:
        `np.ndarray`: float64 of shape (M,), adding up to 1.
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
    `log(mean(exp(log_weights)))` without overflow: [`~erprm_trl.functional.soft_value`] at eta = 1, for numpy arrays.

    Args:
        log_weights (`np.ndarray`):
            Of shape (N,).
    """
    top = log_weights.max()
    return float(top + np.log(np.exp(log_weights - top).mean()))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """
    `(sum of w)^2 / sum of w^2`: N for equal weights, 1 if one particle has everything (Kong, Liu and Wong 1994).

    Args:
        log_weights (`np.ndarray`):
            Of shape (N,), up to a constant.
    """
    weights = tilted_probabilities(log_weights, 1.0)
    return float(1.0 / np.square(weights).sum())


def systematic_resample(log_weights: np.ndarray, offset: float) -> np.ndarray:
    """
    Chooses N of N particles by N evenly spaced points with one common offset: particle i is chosen `floor(N w_i)` or
    `ceil(N w_i)` times, `N w_i` times on average (Carpenter, Clifford and Fearnhead 1999).

    Args:
        log_weights (`np.ndarray`):
            Of shape (N,), up to a constant.
        offset (`float`):
            Uniform in [0, 1).

    Returns:
        `np.ndarray`: N indices in ascending order.
    """
    upper = np.cumsum(tilted_probabilities(log_weights, 1.0))
    # An offset just below 1 rounds the last point to 1. Divided by its last entry the sum ends at exactly 1, above
    # every point, also where no weight is left at the end.
    points = np.minimum((offset + np.arange(len(upper))) / len(upper), np.nextafter(1.0, 0.0))
    return np.searchsorted(upper / upper[-1], points, side="right")
