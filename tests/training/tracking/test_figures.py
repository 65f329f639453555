"""Tests the figures by the contents of their matplotlib artists."""

import pytest
import torch

from erprm_trl.functional.score_metrics import expected_calibration_error
from erprm_trl.training.tracking import label_histogram, reliability_diagram


def test_labels_by_position():
    figure = label_histogram([[1.0, 0.0], [1.0, 0.5], [0.19]])
    above, axes = figure.axes[:2]
    assert [bar.get_height() for bar in above.patches] == [3, 2]
    (image,) = axes.images  # rows are fifths of [0, 1], starting at 0
    expected = [[1 / 3, 1 / 2], [0, 0], [0, 1 / 2], [0, 0], [2 / 3, 0]]
    torch.testing.assert_close(torch.tensor(image.get_array().data), torch.tensor(expected, dtype=torch.float64))
    (line,) = axes.lines
    assert line.get_ydata() == pytest.approx([2.19 / 3, 0.25])


def test_late_positions_share_a_column():
    figure = label_histogram([[1.0] * 30, [0.0] * 24])
    above, axes = figure.axes[:2]
    heights = [bar.get_height() for bar in above.patches]
    assert len(heights) == 24 and heights[-1] == 7 + 1 and sum(heights) == 54
    assert axes.get_xticklabels()[-1].get_text() == "24+"
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(7 / 8)
    full = label_histogram([[1.0] * 24])
    assert full.axes[1].get_xticklabels()[-1].get_text() == "24"


def test_reliability():
    scores, labels = torch.tensor([0.05, 0.07, 0.95, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    figure = reliability_diagram(scores, labels, "calibration, eval")
    axes, below = figure.axes
    points = axes.lines[1]
    assert points.get_xdata() == pytest.approx([0.06, 0.975]) and points.get_ydata() == pytest.approx([0.5, 1.0])
    assert [bar.get_height() for bar in below.patches] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert axes.texts[0].get_text() == "ECE 0.233\n4 steps"  # (0.44 + 0.025) / 2
    assert expected_calibration_error(scores, labels).item() == pytest.approx((0.44 + 0.025) / 2)
    assert axes.get_title() == "calibration, eval"
