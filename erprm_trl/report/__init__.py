"""Plots, tables and the report page of a run."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .page import write_report
    from .plots import draw_calibration, draw_label_noise, draw_selection_curves, plot_selection_curves
    from .tables import (
        format_calibration_table,
        format_difference_table,
        format_label_noise_table,
        format_processbench_table,
        format_selection_table,
        selection_rows,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "page": ["write_report"],
        "plots": ["draw_calibration", "draw_label_noise", "draw_selection_curves", "plot_selection_curves"],
        "tables": [
            "format_calibration_table",
            "format_difference_table",
            "format_label_noise_table",
            "format_processbench_table",
            "format_selection_table",
            "selection_rows",
        ],
    },
)
