"""Plots of a run, drawn by matplotlib without a display. Numbers come from `selection`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe-Ito: told apart by most readers, also those who are colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # of the first six lines, the next six, ...


def series_style(index: int) -> dict[str, str]:
    """Colour and line style of a plot's line: reward model number `index` has the same ones in every plot."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def draw_selection_curves(curves: Mapping[str, Any], *, title: str = "", aggregation: str = "min") -> "Figure":
    """
    Accuracy against the number of samples: the reward models' picks between majority voting and pass@n.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
        title (`str`, *optional*):
            Above the plot.
        aggregation (`str`, *optional*, defaults to `"min"`):
            Which aggregation of step scores is drawn.

    Returns:
        [`~matplotlib.figure.Figure`]: the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    _draw(axes, curves["pass"], "pass@n (a perfect choice)", color="0.25", linestyle=":")
    _draw(axes, curves["majority"], "majority vote", color="0.25", linestyle="--")
    for index, (name, methods) in enumerate(curves["models"].items()):
        _draw(
            axes,
            methods[aggregation]["best_of_n"],
            name,
            **series_style(index),
            marker="o",
            markersize=3.5,
        )
    ns = sorted(curves["pass"])
    axes.set(xscale="log", xlabel="samples a question (n)", ylabel="accuracy of the chosen answer", title=title)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title=f"best of n by {aggregation}",
        title_fontsize=8,
    )
    return figure


def plot_selection_curves(
    curves: Mapping[str, Any], path: str | Path, *, title: str = "", aggregation: str = "min"
) -> None:
    """
    Saves the picture of [`draw_selection_curves`].

    Args:
        curves, title, aggregation:
            As there.
        path (`str` or `Path`):
            The picture, e.g. `.png` or `.svg`.
    """
    draw_selection_curves(curves, title=title, aggregation=aggregation).savefig(path, dpi=150)


def draw_metric(lines: Mapping[int, Sequence[tuple[float, float]]]) -> "Figure":
    """
    A metric of trainings against their steps, small.

    Args:
        lines (`Mapping[int, Sequence]`):
            Points (step, value) by the training's number.

    Returns:
        [`~matplotlib.figure.Figure`]: the figure, without title and legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 1.9))
    axes = figure.add_axes((0.17, 0.16, 0.8, 0.78))
    for index, points in lines.items():
        xs, ys = zip(*points, strict=True)
        # A few points are shown as such.
        marker = {"marker": "o", "markersize": 3} if len(points) <= 12 else {}
        axes.plot(xs, ys, **series_style(index), **marker, linewidth=1.3)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw(axes, curve: Mapping[int, Mapping[str, float]], label: str, **style: Any) -> None:
    ns = sorted(curve)
    axes.plot(ns, [curve[n]["mean"] for n in ns], label=label, **style)
    axes.fill_between(
        ns, [curve[n]["low"] for n in ns], [curve[n]["high"] for n in ns], color=style["color"], alpha=0.1, linewidth=0
    )
