"""What people look at: plots and tables of a run."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .plots import plot_selection_curves
    from .tables import format_selection_table

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"plots": ["plot_selection_curves"], "tables": ["format_selection_table"]}
)
