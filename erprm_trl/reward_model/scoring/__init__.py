"""A trained reward model gives step scores: in this process, split over processes, or from a server."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .remote import RemoteStepScorer
    from .scorer import StepScorer, solution_scores

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "remote": ["RemoteStepScorer"],
        "scorer": ["StepScorer", "solution_scores"],
    },
)
