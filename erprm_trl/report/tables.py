"""Comparisons as plain text, for a terminal."""

from collections.abc import Mapping
from typing import Any


def format_selection_table(curves: Mapping[str, Any], n: int) -> str:
    """
    Ways to choose one of n solutions, a line each, with their intervals.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
        n (`int`):
            Number of samples; one of the curves' points.

    Returns:
        `str`: pass@1, majority@n, pass@n, then for each reward model best-of-n by each aggregation and the
        within-question AUC.
    """
    methods = list(next(iter(curves["models"].values()), {}))
    width = max(24, 2 + max(map(len, curves["models"]), default=0))  # names are often long paths
    lines = [
        f"{'pass@1':<{width}}{_interval(curves['pass'][1])}",
        f"{f'majority@{n}':<{width}}{_interval(curves['majority'][n])}",
        f"{f'pass@{n}':<{width}}{_interval(curves['pass'][n])}",
        "",
        f"{f'best of {n} by':<{width}}"
        + "".join(f"{method:<22}" for method in methods)
        + "AUC within questions (min)",
    ]
    for name, by_method in curves["models"].items():
        cells = "".join(f"{_interval(by_method[method]['best_of_n'][n]):<22}" for method in methods)
        auc = by_method.get("min", next(iter(by_method.values())))["auc_within_questions"]
        lines.append(f"{name:<{width}}{cells}{'n/a' if auc is None else format(auc, '.3f')}")
    return "\n".join(lines)


def selection_rows(curves: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """
    Columns and rows of all points of the curves: the way to choose, n, accuracy and its interval.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
    """
    ways = {"pass@n": curves["pass"], "majority@n": curves["majority"]}
    for name, by_method in curves["models"].items():
        ways |= {f"{name}, {method}": of_method["best_of_n"] for method, of_method in by_method.items()}
    rows = [
        [way, n, curve[n]["mean"], curve[n]["low"], curve[n]["high"]]
        for way, curve in ways.items()
        for n in sorted(curve)
    ]
    return ["choice", "n", "accuracy", "low", "high"], rows


def _interval(point: Mapping[str, float]) -> str:
    return f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
