"""What a run shows in wandb, trackio and tensorboard beside its scalars: figures, tables, throughput, artifacts."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .coloured_steps import ColouredSteps, solutions_table
    from .figures import label_histogram, reliability_diagram
    from .redaction import redacted
    from .throughput import Throughput
    from .trackers import Trackers
    from .tracking_config import TrackingConfig
    from .training_tracker import TrainingTracker

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "figures": ["label_histogram", "reliability_diagram"],
        "redaction": ["redacted"],
        "coloured_steps": ["ColouredSteps", "solutions_table"],
        "throughput": ["Throughput"],
        "trackers": ["Trackers"],
        "tracking_config": ["TrackingConfig"],
        "training_tracker": ["TrainingTracker"],
    },
)
