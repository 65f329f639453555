"""What every trainer shares: checkpoints that survive a crash, a stop at non-finite values, the refusal to train
nothing, tracking."""

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
