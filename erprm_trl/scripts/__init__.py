"""The stages as programs: one module per command of `erprm`, each with the dataclasses of its arguments and `main`."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .progress import show_training, with_bar

# Progress bars import `transformers.Trainer`: a module of a stage, which is imported for its help, loads them later.
__getattr__, __dir__, __all__ = lazy_exports(__name__, {"progress": ["show_training", "with_bar"]})
