"""Figures of a training run, drawn with matplotlib. No display is needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...functional.score_metrics import calibration_bins, expected_calibration_error


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
LABEL_BINS = 5  # K continuations give K + 1 label values, so more bins could be empty
MAX_POSITIONS = 24  # more columns are not readable; later steps share the last column


def label_histogram(labels: Sequence[Sequence[float]], title: str = "") -> "Figure":
    """
    Draws the distribution of labels by the position of the step.

    Each position is one column, shaded by the share of its labels in each fifth of [0, 1]. A line shows the mean label
    per position, and bars at the top show the number of labels.

    Args:
        labels (`Sequence[Sequence[float]]`):
            Labels in [0, 1], one list per solution, with at least one label in total.
        title (`str`, *optional*):
            Title above the plot.

    Returns:
        [`~matplotlib.figure.Figure`]: the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    flat = torch.tensor([label for row in labels for label in row], dtype=torch.float64)
    positions = torch.tensor([position for row in labels for position in range(len(row))])
    num_positions = min(int(positions.max()) + 1, MAX_POSITIONS)
    is_cut = int(positions.max()) >= num_positions
    positions = positions.clamp(max=num_positions - 1)
    fifth = (flat * LABEL_BINS).long().clamp(max=LABEL_BINS - 1)
    cells = torch.bincount(positions * LABEL_BINS + fifth, minlength=num_positions * LABEL_BINS)
    cells = cells.reshape(num_positions, LABEL_BINS).double()
    counts = cells.sum(1)
    sums = torch.zeros(num_positions, dtype=torch.float64).index_add(0, positions, flat)
    names = [str(position + 1) for position in range(num_positions)]
    if is_cut:
        names[-1] += "+"

    figure = Figure(figsize=(max(4.4, 2.6 + 0.34 * num_positions), 4.6), layout="constrained")
    above, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.2])
    ticks = range(num_positions)
    above.bar(ticks, counts.tolist(), width=0.86, color="0.6")
    above.set(ylabel="steps", title=title)
    shares = (cells / counts.clamp(min=1)[:, None]).T.tolist()
    mesh = axes.imshow(
        shares, origin="lower", aspect="auto", cmap="Blues", vmin=0, extent=(-0.5, num_positions - 0.5, 0, 1)
    )
    means = (sums / counts.clamp(min=1)).tolist()
    outline = [withStroke(linewidth=3.2, foreground="white")]  # makes the line visible on dark cells
    axes.plot(ticks, means, color=ORANGE, marker="o", markersize=3.5, linewidth=1.4, path_effects=outline)
    axes.set(xlabel="step", ylabel="label (line: mean)", ylim=(-0.02, 1.02))
    axes.set_xticks(ticks, names)
    figure.colorbar(mesh, ax=axes, label="share of the step's labels", pad=0.02)
    for panel in (above, axes):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def reliability_diagram(scores: Tensor, labels: Tensor, title: str = "") -> "Figure":
    """
    Draws the mean label against the mean score in ten equal-width bins of the score.

    Calibrated scores are on the diagonal. The figure also shows the expected calibration error, and the number of
    steps per bin.

    Args:
        scores (`torch.Tensor`):
            Scores in [0, 1], flat, not empty.
        labels (`torch.Tensor`):
            Soft or hard labels in [0, 1], of the same shape.
        title (`str`, *optional*):
            Title above the plot.

    Returns:
        [`~matplotlib.figure.Figure`]: the figure.
    """
    from matplotlib.figure import Figure

    error = expected_calibration_error(scores, labels).item()
    counts, mean_scores, mean_labels = (values.tolist() for values in calibration_bins(scores, labels))
    edges = [index / len(counts) for index in range(len(counts))]
    filled = [index for index, count in enumerate(counts) if count]
    xs, ys = [mean_scores[index] for index in filled], [mean_labels[index] for index in filled]

    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    axes.vlines(xs, xs, ys, color=ORANGE, linewidth=3, alpha=0.45, label="gap")
    axes.plot(xs, ys, color=BLUE, marker="o", markersize=5, label="mean label")
    axes.set(ylabel="mean label", ylim=(-0.03, 1.03), title=title)
    axes.text(0.97, 0.05, f"ECE {error:.3f}\n{sum(counts):,} steps", ha="right", transform=axes.transAxes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    below.bar(edges, counts, width=0.094, align="edge", color="0.6")
    below.set(xlabel="score", ylabel="steps", xlim=(-0.02, 1.02))
    for panel in (axes, below):
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure
