"""Plots of selection curves, calibration and training metrics, drawn by matplotlib without a display.

The functions take results that other stages have computed. They import matplotlib when they are called.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.paths import local_path


if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The Okabe-Ito palette, which most colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # for the first six lines, the next six, ...
MARGINS = {"left": 0.16, "right": 0.98, "bottom": 0.13, "top": 0.97}  # faster than a layout engine
MOST_LETTERS = 28  # of a name next to an axis
# Lines about labels by position: name, key of the measurement, index of the colour, style.
CERTAIN_LABELS = {
    "all continuations fail": ("certain_failure", 1, "-"),
    "all continuations succeed": ("certain_success", 0, "-"),
    "mean rate in wrong solutions": ("wrong", 1, "--"),
    "mean rate in right solutions": ("right", 0, "--"),
}


def series_style(index: int) -> dict[str, str]:
    """Colour and line style of line `index`. A reward model has the same ones in every plot."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def draw_selection_curves(curves: Mapping[str, Any], *, title: str = "", aggregation: str = "min") -> "Figure":
    """
    Accuracy against the number of samples: the reward models' picks between majority voting and pass@n.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
        title (`str`, *optional*):
            Title of the plot.
        aggregation (`str`, *optional*, defaults to `"min"`):
            The aggregation of step scores that is drawn.

    Returns:
        [`~matplotlib.figure.Figure`]: The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    _draw_curve(axes, curves["pass"], "pass@n (a perfect choice)", color="0.25", linestyle=":")
    _draw_curve(axes, curves["majority"], "majority vote", color="0.25", linestyle="--")
    for index, (name, methods) in enumerate(curves["models"].items()):
        _draw_curve(
            axes,
            methods[aggregation]["best_of_n"],
            name,
            **series_style(index),
            marker="o",
            markersize=3.5,
        )
    ns = sorted(curves["pass"])
    axes.set(xscale="log", xlabel="samples per question (n)", ylabel="accuracy of the chosen answer", title=title)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.minorticks_off()
    _open_axes(axes)
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
    Saves the figure of [`draw_selection_curves`].

    Args:
        curves, title, aggregation:
            Arguments of [`draw_selection_curves`].
        path (`str` or `Path`):
            Name of the file. Its ending sets the format, e.g. `.png` or `.svg`.
    """
    draw_selection_curves(curves, title=title, aggregation=aggregation).savefig(local_path(path), dpi=150)


def draw_calibration(results: Mapping[str, Mapping[str, Any]], *, title: str = "") -> "Figure":
    """
    Draws the calibration of reward models.

    Left: mean value against mean score in bins of the score, with one line per reward model, and below it the
    distribution of the scores. On the diagonal, scores are calibrated. Right: mean score and mean value by the
    position of the step, and below it how well the scores tell which prefixes can still succeed.

    Args:
        results (`Mapping[str, Mapping]`):
            Results of [`~erprm_trl.selection.measure_calibration`] on the same rollouts, by name of a reward model.
        title (`str`, *optional*):
            Title of the plot.

    Returns:
        [`~matplotlib.figure.Figure`]: The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    (diagram, by_position), (histogram, ranking) = figure.subplots(2, 2, height_ratios=[2.2, 1])
    _draw_diagram(diagram, histogram, results, f"mean value (eta = {next(iter(results.values()))['eta']})")
    diagram.set(title=title)
    _draw_positions(by_position, ranking, results)
    figure.legend(
        handles=[*diagram.lines, by_position.lines[0]],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_reliability(results: Mapping[str, Mapping[str, Any]], value: str) -> "Figure":
    """
    Draws the left half of [`draw_calibration`], without a legend.

    Args:
        results (`Mapping[str, Mapping]`):
            `bins`, `ece` and `prefixes` by name of a reward model. The scores may belong to whole solutions instead of
            prefixes.
        value (`str`):
            Label of the axis with the values that the scores are compared with.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.4))
    _draw_diagram(*figure.subplots(2, 1, height_ratios=[2.6, 1], sharex=True), results, value)
    figure.subplots_adjust(**MARGINS, hspace=0.12)
    return figure


def draw_calibration_by_position(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Draws the right half of [`draw_calibration`], without a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.4))
    _draw_positions(*figure.subplots(2, 1, height_ratios=[2.2, 1]), results)
    figure.subplots_adjust(**MARGINS, hspace=0.2)
    return figure


def draw_label_noise(noise: Mapping[str, Any], *, title: str = "") -> "Figure":
    """
    Draws the noise of labels.

    Left: by the number of steps of the prefix, the share of labels for which all continuations fail or all succeed,
    and the mean success rate in right and in wrong solutions. Right: two labels of the same prefix from one half of
    its continuations each. Without noise, all points are on the diagonal.

    Args:
        noise (`Mapping`):
            From [`~erprm_trl.rollouts.measure_label_noise`].
        title (`str`, *optional*):
            Title of the plot.

    Returns:
        [`~matplotlib.figure.Figure`]: the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    certain, repeated = figure.subplots(1, 2)
    _draw_certain(certain, noise)
    _draw_repeated(repeated, noise)
    certain.set(title=title)
    figure.legend(handles=certain.lines, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_certain_labels(noise: Mapping[str, Any]) -> "Figure":
    """Draws the left half of [`draw_label_noise`], without a legend."""
    return _draw_one(lambda axes: _draw_certain(axes, noise))


def draw_repeated_labels(noise: Mapping[str, Any]) -> "Figure":
    """Draws the right half of [`draw_label_noise`]."""
    return _draw_one(lambda axes: _draw_repeated(axes, noise))


def draw_metric(
    lines: Mapping[int, Sequence[tuple[float, float]]], *, unit: str = "value", size: tuple[float, float] = (3.4, 2.1)
) -> "Figure":
    """
    Draws a metric of trainings against their steps.

    Args:
        lines (`Mapping[int, Sequence]`):
            Points (step, value) by the number of the training.
        unit (`str`, *optional*, defaults to `"value"`):
            Label of the vertical axis.
        size (`tuple[float, float]`, *optional*):
            Width and height in inches.

    Returns:
        [`~matplotlib.figure.Figure`]: The figure, without title and legend.
    """
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size)
    # Fixed margins, in inches, are faster than a layout engine.
    axes = figure.add_axes((0.7 / width, 0.45 / height, 1 - 0.8 / width, 1 - 0.55 / height))
    for index, line in lines.items():
        steps, values = zip(*line, strict=True)
        marker = {"marker": "o", "markersize": 3} if len(line) <= 12 else {}
        axes.plot(steps, values, **series_style(index), **marker, linewidth=1.3)
    axes.set_xlabel("training step")
    axes.set_ylabel(unit, parse_math=False)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=4)
    _open_axes(axes)
    return figure


def draw_intervals(points: Mapping[str, Mapping[str, float]], unit: str) -> "Figure":
    """
    Draws means with their intervals, one row per name.

    Args:
        points (`Mapping[str, Mapping]`):
            `mean`, `low` and `high` by name.
        unit (`str`):
            Label of the horizontal axis.

    Returns:
        [`~matplotlib.figure.Figure`]: The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 1.2 + 0.4 * len(points)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(points))
    means = [point["mean"] for point in points.values()]
    ends = [[point["mean"] - point["low"] for point in points.values()]]
    ends.append([point["high"] - point["mean"] for point in points.values()])
    axes.errorbar(means, rows, xerr=ends, fmt="o", color=COLOURS[0], capsize=3)
    names = [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in points]
    axes.set_yticks(rows, names, parse_math=False)
    axes.set(xlabel=unit, ylim=(len(points) - 0.5, -0.5))
    _open_axes(axes)
    return figure


def _draw_curve(axes: "Axes", curve: Mapping[int, Mapping[str, float]], label: str, **style: Any) -> None:
    ns = sorted(curve)
    axes.plot(ns, [curve[n]["mean"] for n in ns], label=label, **style)
    axes.fill_between(
        ns, [curve[n]["low"] for n in ns], [curve[n]["high"] for n in ns], color=style["color"], alpha=0.1, linewidth=0
    )


def _draw_diagram(diagram: "Axes", histogram: "Axes", results: Mapping[str, Mapping[str, Any]], value: str) -> None:
    diagram.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    for index, (name, result) in enumerate(results.items()):
        style = series_style(index)
        filled = [score_bin for score_bin in result["bins"] if score_bin["count"]]
        scores, values = (
            [score_bin["mean_score"] for score_bin in filled],
            [score_bin["mean_label"] for score_bin in filled],
        )
        label = f"{name} (ECE {result['ece']:.3f})"
        diagram.plot(scores, values, **style, linewidth=1.2, label=label)
        # The area shows the share, because a bin with few prefixes is mostly noise.
        sizes = [4 + 120 * score_bin["count"] / result["prefixes"] for score_bin in filled]
        diagram.scatter(scores, values, s=sizes, color=style["color"], alpha=0.7, zorder=3)
        edges = [edge / len(result["bins"]) for edge in range(len(result["bins"]) + 1)]
        shares = [score_bin["count"] / result["prefixes"] for score_bin in result["bins"]]
        histogram.stairs(shares, edges, **style, linewidth=1.4)
    diagram.set(ylabel=value, xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    histogram.set(xlabel="score", ylabel="share", xlim=(-0.02, 1.02))
    for axes in (diagram, histogram):
        axes.set_axisbelow(True)
    _open_axes(diagram, histogram)


def _draw_positions(by_position: "Axes", ranking: "Axes", results: Mapping[str, Mapping[str, Any]]) -> None:
    first = next(iter(results.values()))
    positions = [point["position"] for point in first["by_position"]]
    means = [point["mean_label"] for point in first["by_position"]]
    square = {"marker": "s", "markersize": 3.5}
    by_position.plot(positions, means, color="0.25", linestyle="--", **square, label="mean value (right)")
    ranking.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
    for index, result in enumerate(results.values()):
        style = {**series_style(index), "marker": "o", "markersize": 3.5}
        by_position.plot(positions, [point["mean_score"] for point in result["by_position"]], **style)
        aucs = [(point["position"], point["auc_can_succeed"]) for point in result["by_position"]]
        known = [pair for pair in aucs if pair[1] is not None]
        ranking.plot([x for x, _ in known], [y for _, y in known], **style)
    by_position.set(ylabel="mean score", ylim=(-0.03, 1.03))
    ranking.set(xlabel="steps of the prefix", ylabel="AUC: can succeed", xlim=by_position.get_xlim())
    for axes in (by_position, ranking):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_axisbelow(True)
    _open_axes(by_position, ranking)


def _draw_one(draw: "Callable[[Axes], None]") -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3.8))
    draw(figure.subplots())
    figure.subplots_adjust(**MARGINS)
    return figure


def _draw_certain(axes: "Axes", noise: Mapping[str, Any]) -> None:
    positions = [point["position"] for point in noise["by_position"]]
    for name, (key, colour, line) in CERTAIN_LABELS.items():
        shares = [(position, point[key]) for position, point in zip(positions, noise["by_position"], strict=True)]
        known = [pair for pair in shares if pair[1] is not None]
        style = {"color": COLOURS[colour], "linestyle": line, "marker": "o", "markersize": 3.5, "linewidth": 1.4}
        axes.plot([x for x, _ in known], [y for _, y in known], **style, label=name)
    axes.set(xlabel="steps of the prefix", ylabel="share of prefixes, or mean rate", ylim=(-0.03, 1.03))
    if noise["by_position"][-1]["or_more"]:
        axes.set(xlabel=f"steps of the prefix ({positions[-1]}: {positions[-1]} or more)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _open_axes(axes)


def _draw_repeated(axes: "Axes", noise: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    pairs = noise["repeated"]["pairs"]
    largest = max((count for *_, count in pairs), default=1)
    axes.scatter(
        [first for first, _, _ in pairs],
        [second for _, second, _ in pairs],
        s=[3 + 200 * count / largest for *_, count in pairs],
        color=COLOURS[0],
        alpha=0.6,
        linewidths=0,
        zorder=3,
    )
    axes.set(xlabel="label from one half of the continuations", ylabel="label from the other half")
    axes.set(xlim=(-0.08, 1.08), ylim=(-0.08, 1.08))
    _open_axes(axes)


def _open_axes(*all_axes: "Axes") -> None:
    """Adds a faint grid, and removes the frame at the top and on the right."""
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
