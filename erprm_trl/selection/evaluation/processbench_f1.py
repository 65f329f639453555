"""ProcessBench's metrics: the predicted first error, the accuracy on solutions with and without errors, and their
harmonic mean F1."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bootstrap import check_num_resamples, mean_and_interval, middle_quantiles


def first_error(step_scores: Sequence[float], threshold: float) -> int:
    """Index of the first step whose score is below the threshold, or -1 if there is no such step."""
    return next((index for index, score in enumerate(step_scores) if score < threshold), -1)


def choose_threshold(step_scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """
    Chooses the threshold with the highest F1 on validation solutions.

    The search is exact. On a solution without an error, the prediction is right for thresholds up to its lowest score.
    On a solution with an error, it is right for thresholds above the wrong step's score and up to the lowest score
    before it. F1 therefore changes only at scores.

    Args:
        step_scores (`Sequence[Sequence[float]]`):
            Step scores of each solution. An empty list marks a solution that is too long, which always counts as
            wrong.
        labels (`Sequence[int]`):
            Index of the first wrong step of each solution, or -1.

    Returns:
        `float`: the middle of the best interval between neighbouring scores. Among several best intervals, it is the
        middle nearest to 0.5.

    Raises:
        `ValueError`: if there is no solution with an error, or no solution without an error.
    """
    _check_both_kinds(labels, "The validation solutions")
    # By "has an error": the intervals low < threshold <= high of right predictions.
    wins: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for scores, label in zip(step_scores, labels, strict=True):
        if scores:
            low, high = (scores[label], min(scores[:label], default=1.0)) if label >= 0 else (0.0, min(scores))
            if low < high:
                wins[label >= 0].append((low, high))
    edges = np.unique([0.0, 1.0, *(edge for pairs in wins.values() for pair in pairs for edge in pair)])
    candidates = (edges[:-1] + edges[1:]) / 2
    totals = {True: sum(label >= 0 for label in labels), False: sum(label < 0 for label in labels)}
    accuracies = [_covering(wins[kind], candidates) / totals[kind] for kind in (True, False)]
    f1 = _harmonic_mean(*accuracies)
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def processbench_metrics(
    predictions: Mapping[str, Sequence[int | None]],
    labels: Mapping[str, Sequence[int]],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Computes the metrics of the protocol: the accuracy on solutions with an error (the first wrong step is predicted
    exactly), the accuracy on solutions without an error (-1 is predicted), their harmonic mean F1, and the means over
    subsets.

    Args:
        predictions (`Mapping[str, Sequence[int | None]]`):
            Predictions of each subset, from [`first_error`]. `None` marks a solution that could not be scored, and
            counts as wrong.
        labels (`Mapping[str, Sequence[int]]`):
            Index of the first wrong step of each solution, or -1, by subset.
        level, num_resamples, seed (*optional*):
            See [`~erprm_trl.selection.bootstrap_interval`]. Solutions with and without an error are resampled
            separately. The same seed and labels resample the same solutions, for any predictions.

    Returns:
        `dict`: with these entries:

        - `subsets`: by name, `erroneous`, `correct` and `f1` (each `{"mean", "low", "high"}`), `num_erroneous` and
          `num_correct`.
        - `average`: `erroneous`, `correct` and `f1` over subsets.
        - `f1_resamples`: the average F1 of each bootstrap resample, for [`paired_f1_difference`].

    Raises:
        `ValueError`: if a subset has no solution with an error or no solution without an error, or if sizes differ.
    """
    quantiles = middle_quantiles(level)
    check_num_resamples(num_resamples)
    rng = np.random.default_rng(seed)
    subsets, points, draws = {}, [], []
    for name, subset_labels in labels.items():
        _check_both_kinds(subset_labels, f"Subset {name!r}")
        hits = np.array([p == y for p, y in zip(predictions[name], subset_labels, strict=True)], dtype=np.float64)
        has_error = np.array(subset_labels) >= 0
        figures, resampled = [], []
        for kind in (has_error, ~has_error):
            figures.append(hits[kind].mean())
            resampled.append(_resampled_means(hits[kind], num_resamples, rng))
        figures.append(_harmonic_mean(*figures))
        resampled.append(_harmonic_mean(*resampled))
        points.append(figures)
        draws.append(resampled)
        subsets[name] = {
            **_with_intervals(figures, resampled, quantiles),
            "num_erroneous": int(has_error.sum()),
            "num_correct": int((~has_error).sum()),
        }
    average = np.mean(draws, axis=0)
    return {
        "subsets": subsets,
        "average": _with_intervals(np.mean(points, axis=0), average, quantiles),
        "f1_resamples": average[2],
    }


def paired_f1_difference(left: Mapping[str, Any], right: Mapping[str, Any], level: float = 0.95) -> dict[str, float]:
    """
    The average F1 of `left` minus the average F1 of `right` with its paired bootstrap interval, as `{"mean", "low",
    "high"}`. Both are results of [`processbench_metrics`] on the same solutions with the same seed.
    """
    mean = left["average"]["f1"]["mean"] - right["average"]["f1"]["mean"]
    return mean_and_interval(mean, left["f1_resamples"] - right["f1_resamples"], middle_quantiles(level))


def _check_both_kinds(labels: Sequence[int], subject: str) -> None:
    erroneous = sum(label >= 0 for label in labels)
    if not 0 < erroneous < len(labels):
        raise ValueError(
            f"{subject}: got {erroneous} solutions with an error and {len(labels) - erroneous} without, expected at "
            "least one of each, because F1 needs both. Join subsets, or use more solutions."
        )


def _covering(intervals: list[tuple[float, float]], candidates: np.ndarray) -> np.ndarray:
    """Number of intervals that contain each candidate. No candidate equals an end of an interval."""
    lows, highs = (np.sort([pair[end] for pair in intervals]) for end in (0, 1))
    return np.searchsorted(lows, candidates) - np.searchsorted(highs, candidates)


def _harmonic_mean(left, right):
    total = left + right
    return np.divide(2 * left * right, total, out=np.zeros_like(np.asarray(total)), where=total > 0)


def _resampled_means(hits: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([hits[rng.integers(len(hits), size=len(hits))].mean() for _ in range(num_resamples)])


def _with_intervals(figures, resampled, quantiles: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        name: mean_and_interval(figure, resampled_figure, quantiles)
        for name, figure, resampled_figure in zip(("erroneous", "correct", "f1"), figures, resampled, strict=True)
    }
