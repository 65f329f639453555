"""Guided search: a policy writes solutions step by step, and step scores select the prefixes to continue."""

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
