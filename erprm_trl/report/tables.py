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
    lines = [
        f"{'pass@1':<24}{_interval(curves['pass'][1])}",
        f"{f'majority@{n}':<24}{_interval(curves['majority'][n])}",
        f"{f'pass@{n}':<24}{_interval(curves['pass'][n])}",
        "",
        f"{f'best of {n} by':<24}" + "".join(f"{method:<22}" for method in methods) + "AUC within questions (min)",
    ]
    for name, by_method in curves["models"].items():
        cells = "".join(f"{_interval(by_method[method]['best_of_n'][n]):<22}" for method in methods)
        auc = by_method.get("min", next(iter(by_method.values())))["auc_within_questions"]
        lines.append(f"{name:<24}{cells}{auc:.3f}")
    return "\n".join(lines)


def _interval(point: Mapping[str, float]) -> str:
    return f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
