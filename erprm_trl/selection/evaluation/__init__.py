"""Evaluates step scores: calibration against the rewards of continuations, and ProcessBench."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .calibration import measure_calibration
    from .processbench import JudgedSolution, evaluate_processbench, hold_out, load_processbench
    from .processbench_f1 import choose_threshold, first_error, processbench_metrics
    from .score_cache import score_judged
    from .score_file import score_rows

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "calibration": ["measure_calibration"],
        "processbench": ["JudgedSolution", "evaluate_processbench", "hold_out", "load_processbench"],
        "processbench_f1": ["choose_threshold", "first_error", "processbench_metrics"],
        "score_cache": ["score_judged"],
        "score_file": ["score_rows"],
    },
)
