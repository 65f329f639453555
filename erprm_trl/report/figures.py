"""The figures of the page, each with its legend and, where it depends on it, one for every aggregation of step
scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup

from ..functional.aggregation import AGGREGATIONS
from ..functional.score_metrics import calibration_bins, expected_calibration_error
from ..reward_model.scoring.scorer import solution_scores
from ..training.tracking.figures import label_histogram
from .plots import COLOURS, LINES, draw_calibration_by_position, draw_metric, draw_reliability, draw_selection_curves
from .run_folder import shown_names
from .solutions import Collection
from .svg import inline_svg


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Drawing:
    """
    A plot that the page draws when it is put together.

    Attributes:
        draw (`Callable`): makes the figure.
        description (`str`): what the plot shows, for readers who cannot see it.
        legend (`list[tuple[str, str]]`): lines of the legend: class of the style sheet, text.
        aggregation (`str`, *optional*): the aggregation of step scores that the plot is for.
    """

    draw: Callable[[], "Figure"]
    description: str
    legend: list[tuple[str, str]]
    aggregation: str | None = None

    def svg(self, prefix: str) -> Markup:
        """The plot as an `<svg>` element whose ids begin with `prefix`, which each plot of a page has for itself."""
        return inline_svg(self.draw, prefix, self.description)


def selection_drawings(curves: Mapping[str, Any]) -> list[Drawing]:
    """Best-of-n by every aggregation that the curves have."""
    names = shown_names(list(curves["models"]))
    legend = [("ink dotted", "pass@n, a perfect choice"), ("ink dashed", "majority vote"), *_legend(names)]

    def draw(aggregation: str) -> "Figure":
        figure = draw_selection_curves(curves, aggregation=aggregation)
        figure.axes[0].get_legend().remove()  # names may be long and are anybody's: the page writes them
        figure.set_size_inches(4.8, 3.5)
        if len(names) > 2:  # bands hide each other, and a table has their ends
            for band in figure.axes[0].collections[2:]:
                band.remove()
        return figure

    methods = next(iter(curves["models"].values()), {})
    return [
        Drawing(lambda by=by: draw(by), f"Accuracy against samples a question, best of n by {by}", legend, by)
        for by in AGGREGATIONS
        if by in methods
    ]


def calibration_drawings(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    """The two halves of a calibration: reliability, and scores by position."""
    names = shown_names(list(results))
    eces = [f"{name} (ECE {result['ece']:.3f})" for name, result in zip(names, results.values(), strict=True)]
    eta = next(iter(results.values()))["eta"]
    return [
        Drawing(
            lambda: draw_reliability(results, f"mean value (eta = {eta})"),
            "Mean value of prefixes against their score",
            [("grey dashed", "calibrated"), *_legend(eces)],
        ),
        Drawing(
            lambda: draw_calibration_by_position(results),
            "Mean score, and how well scores rank prefixes, by the number of steps",
            [("ink dashed", "mean value"), *_legend(names)],
        ),
    ]


def reliability_drawings(collection: Collection) -> list[Drawing]:
    """Are scores of whole solutions right as probabilities of a right answer? By every aggregation."""
    rows = [row for rows in collection.questions for row in rows]
    if not collection.scores or not any(row.is_graded for row in rows):
        return []
    names = shown_names(list(collection.scores))
    drawings = []
    for by in AGGREGATIONS:
        results = {}
        for name, scores in collection.scores.items():
            values = solution_scores([step_scores for scores_N in scores for step_scores in scores_N], by)
            graded = [
                (value, float(row.is_right))
                for value, row in zip(values, rows, strict=True)
                if value is not None and 0 <= value <= 1 and row.is_graded
            ]
            if graded:
                results[name] = _reliability(*torch.tensor(graded, dtype=torch.float64).T)
        if results:
            shown = [name for name, model in zip(names, collection.scores, strict=True) if model in results]
            eces = [f"{name} (ECE {result['ece']:.3f})" for name, result in zip(shown, results.values(), strict=True)]
            drawings.append(
                Drawing(
                    lambda results=results: draw_reliability(results, "share of right answers"),
                    f"Share of right answers against solutions' scores by {by}",
                    [("grey dashed", "calibrated"), *_legend(eces)],
                    by,
                )
            )
    return drawings


def label_drawing(labels: Sequence[Sequence[float]]) -> Drawing:
    """Labels by the position of the step."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patheffects import Normal

    def draw() -> "Figure":
        figure = label_histogram(labels)
        # Cells from clear to blue and a line without its white outline: right on any background.
        clear_to_blue = [(0.15, 0.5, 0.8, level / 99) for level in range(100)]
        figure.axes[1].images[0].set_cmap(ListedColormap(clear_to_blue))
        figure.axes[1].lines[0].set_path_effects([Normal()])
        return figure

    return Drawing(draw, "Histogram of labels by the position of the step", [])


def metric_drawing(name: str, lines: Mapping[int, Sequence[tuple[float, float]]]) -> Drawing:
    """A metric of trainings, by the training's number; its legend is the section's."""
    return Drawing(lambda: draw_metric(lines), f"{name} against training steps", [])


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(series_class(index), name) for index, name in enumerate(names)]


def series_class(index: int) -> str:
    """Class of the style sheet for the line number `index`, as [`~erprm_trl.report.plots.series_style`] draws it."""
    line = {"-": "solid", "--": "dashed", ":": "dotted"}[LINES[index // len(COLOURS) % len(LINES)]]
    return f"series-{index % len(COLOURS)} {line}"


def _reliability(scores: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    bins = zip(*(values.tolist() for values in calibration_bins(scores, right)), strict=True)
    return {
        "prefixes": len(scores),
        "ece": expected_calibration_error(scores, right).item(),
        "bins": [{"count": count, "mean_score": score, "mean_label": label} for count, score, label in bins],
    }
