"""What people look at: plots and tables of a run."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .calibration_plots import draw_calibration
    from .evaluation_tables import format_calibration_table, format_difference_table, format_processbench_table
    from .page import write_report
    from .plots import draw_selection_curves, plot_selection_curves
    from .tables import format_selection_table, selection_rows

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "calibration_plots": ["draw_calibration"],
        "evaluation_tables": ["format_calibration_table", "format_difference_table", "format_processbench_table"],
        "page": ["write_report"],
        "plots": ["draw_selection_curves", "plot_selection_curves"],
        "tables": ["format_selection_table", "selection_rows"],
    },
)
