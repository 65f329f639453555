"""Functions that all trainers share: crash-safe checkpoints, the stop at non-finite values, the check for frozen
weights, and tracking."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .checkpoints import CrashSafeCheckpoints
    from .nonfinite import StopOnNonFinite
    from .trainable import check_trainable, load_adapter

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoints": ["CrashSafeCheckpoints"],
        "nonfinite": ["StopOnNonFinite"],
        "trainable": ["check_trainable", "load_adapter"],
    },
)
