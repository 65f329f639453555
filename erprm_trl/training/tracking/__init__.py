"""Figures, tables, throughput and artifacts of a run, for wandb, trackio and tensorboard."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from ...io.redaction import redacted
    from .coloured_steps import ColouredSteps, solutions_table
    from .figures import label_histogram, reliability_diagram
    from .throughput import Throughput
    from .trackers import Trackers
    from .tracking_config import TrackingConfig
    from .training_tracker import TrainingTracker

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "...io.redaction": ["redacted"],
        "coloured_steps": ["ColouredSteps", "solutions_table"],
        "figures": ["label_histogram", "reliability_diagram"],
        "throughput": ["Throughput"],
        "trackers": ["Trackers"],
        "tracking_config": ["TrackingConfig"],
        "training_tracker": ["TrainingTracker"],
    },
)
