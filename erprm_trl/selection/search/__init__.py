"""Guided search: solutions are written step by step, and step scores decide which prefixes go on."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .guided_decoding import guided_search
    from .question_search import GuidedResult, GuidedSolution

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "guided_decoding": ["guided_search"],
        "question_search": ["GuidedResult", "GuidedSolution"],
    },
)
