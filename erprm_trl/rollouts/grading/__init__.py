"""Compares completions with reference answers, in worker processes that cannot block the caller."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .extraction import extract_answer
    from .grader import Grader, grade

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "extraction": ["extract_answer"],
        "grader": ["Grader", "grade"],
    },
)
