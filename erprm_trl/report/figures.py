"""The figures of the page with their legends. Figures of solution scores exist once per aggregation of step scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup

from ..functional.aggregation import AGGREGATIONS
from ..functional.score_metrics import calibration_bins, expected_calibration_error
from ..reward_model.scoring.scorer import solution_scores
from ..training.tracking.figures import label_histogram
from .metrics import title_and_unit
from .plots import (
    CERTAIN_LABELS,
    COLOURS,
    LINES,
    MARGINS,
    draw_calibration_by_position,
    draw_certain_labels,
    draw_intervals,
    draw_metric,
    draw_reliability,
    draw_repeated_labels,
    draw_selection_curves,
)
from .run_folder import shown_names
from .solutions import Collection
from .svg import inline_svg


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Drawing:
    """
    A plot that is drawn when the page is written.

    Attributes:
        draw (`Callable`): Makes the figure.
        description (`str`): Text about the plot, for readers who cannot see it.
        legend (`list[tuple[str, str]]`): Lines of the legend: the class in the style sheet, and the text.
        aggregation (`str`, *optional*): Aggregation of step scores that the plot uses.
    """

    draw: Callable[[], "Figure"]
    description: str
    legend: list[tuple[str, str]]
    aggregation: str | None = None

    def svg(self, prefix: str) -> Markup:
        """The plot as an `<svg>` element. Its ids begin with `prefix`, which must be unique on the page."""
        return inline_svg(self.draw, prefix, self.description)


def selection_drawings(curves: Mapping[str, Any]) -> list[Drawing]:
    """Best-of-N of all reward models, once per aggregation that the curves have."""
    methods = next(iter(curves["models"].values()), {})
    return [selection_drawing(curves, by, list(curves["models"])) for by in AGGREGATIONS if by in methods]


def selection_drawing(curves: Mapping[str, Any], aggregation: str, names: Sequence[str]) -> Drawing:
    """
    Best-of-N by an aggregation.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
        aggregation (`str`):
            The aggregation of step scores. If the curves lack it, their first one is drawn.
        names (`Sequence[str]`):
            Reward models to draw. Each keeps the colour that it has among all of them.
    """
    all_names = list(curves["models"])
    methods = next(iter(curves["models"].values()), {})
    aggregation = aggregation if aggregation in methods else next(iter(methods), aggregation)
    legend = [("ink dotted", "pass@n, a perfect choice"), ("ink dashed", "majority vote")]
    legend += [entry for name, entry in zip(all_names, _legend(shown_names(all_names)), strict=True) if name in names]

    def draw() -> "Figure":
        figure = draw_selection_curves(curves, aggregation=aggregation)
        axes = figure.axes[0]
        axes.get_legend().remove()  # names may be long and may hold markup: the page writes them
        figure.set_size_inches(4.8, 3.5)
        figure.set_layout_engine(None)
        figure.subplots_adjust(**MARGINS)
        hidden = [place for place, name in enumerate(all_names, start=2) if name not in names]
        # With more models, their bands hide each other. The table has the ends of the intervals.
        without_band = hidden if len(names) <= 2 else range(2, len(all_names) + 2)
        for artist in [axes.lines[place] for place in hidden] + [axes.collections[place] for place in without_band]:
            artist.remove()
        return figure

    return Drawing(draw, f"Accuracy against samples per question, best of n by {aggregation}", legend, aggregation)


def calibration_drawings(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    """The two plots of a calibration: reliability, and scores by position."""
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
    """Share of right answers against the scores of whole solutions, once per aggregation."""
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
    """Histogram of labels by the position of the step."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patheffects import Normal

    def draw() -> "Figure":
        figure = label_histogram(labels)
        # Transparent to blue cells, and a line without its white outline, fit light and dark backgrounds.
        clear_to_blue = [(0.15, 0.5, 0.8, level / 99) for level in range(100)]
        figure.axes[1].images[0].set_cmap(ListedColormap(clear_to_blue))
        figure.axes[1].lines[0].set_path_effects([Normal()])
        return figure

    return Drawing(draw, "Histogram of labels by the position of the step", [])


def label_noise_drawings(noise: Mapping[str, Any]) -> list[Drawing]:
    """The two plots of a measurement of label noise."""
    lines = {"-": "solid", "--": "dashed"}
    legend = [(f"series-{colour} {lines[line]}", name) for name, (_, colour, line) in CERTAIN_LABELS.items()]
    return [
        Drawing(lambda: draw_certain_labels(noise), "Certain labels and mean rates by the number of steps", legend),
        Drawing(
            lambda: draw_repeated_labels(noise),
            "Labels from one half of the continuations against labels from the other half",
            [("grey dashed", "equal labels; the area of a point shows its share")],
        ),
    ]


def metric_drawing(
    name: str, lines: Mapping[int, Sequence[tuple[float, float]]], size: tuple[float, float] = (3.4, 2.1)
) -> Drawing:
    """A metric of trainings, by the training's number. The section that shows it has the legend."""
    title, unit = title_and_unit(name)
    return Drawing(lambda: draw_metric(lines, unit=unit, size=size), f"{title} against training steps", [])


def interval_drawing(points: Mapping[str, Mapping[str, float]], unit: str, description: str) -> Drawing:
    """Means with their intervals, one row per name."""
    return Drawing(lambda: draw_intervals(points, unit), description, [])


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(series_class(index), name) for index, name in enumerate(names)]


def series_class(index: int) -> str:
    """Class in the style sheet for line `index`, which looks as [`~erprm_trl.report.plots.series_style`] draws it."""
    line = {"-": "solid", "--": "dashed", ":": "dotted"}[LINES[index // len(COLOURS) % len(LINES)]]
    return f"series-{index % len(COLOURS)} {line}"


def _reliability(scores: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    bins = zip(*(values.tolist() for values in calibration_bins(scores, right)), strict=True)
    return {
        "prefixes": len(scores),
        "ece": expected_calibration_error(scores, right).item(),
        "bins": [{"count": count, "mean_score": score, "mean_label": label} for count, score, label in bins],
    }
