"""Scores steps with a trained reward model: in this process, sharded over processes, or on a server."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .backend import CollectiveBackend, ScoringBackend, SolutionTooLong
    from .eta import scores_at_eta
    from .implicit import ImplicitBackend
    from .loading import load_backend, load_format
    from .local import LocalBackend
    from .remote import RemoteBackend
    from .renamed import RemoteStepScorer
    from .scorer import StepScorer, solution_scores
    from .sharded import ShardedBackend

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "backend": ["CollectiveBackend", "ScoringBackend", "SolutionTooLong"],
        "eta": ["scores_at_eta"],
        "implicit": ["ImplicitBackend"],
        "loading": ["load_backend", "load_format"],
        "local": ["LocalBackend"],
        "remote": ["RemoteBackend"],
        "renamed": ["RemoteStepScorer"],
        "scorer": ["StepScorer", "solution_scores"],
        "sharded": ["ShardedBackend"],
    },
)
