"""What every trainer shares: checkpoints that survive a crash, a stop at non-finite values, tracking."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .checkpoints import CrashSafeCheckpoints
    from .nonfinite import StopOnNonFinite

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoints": ["CrashSafeCheckpoints"],
        "nonfinite": ["StopOnNonFinite"],
    },
)
