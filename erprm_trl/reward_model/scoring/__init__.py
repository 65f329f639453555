"""Scores steps with a trained reward model (in this process, sharded over processes, or on a server), or without one:
by sampled continuations, or by a language model as judge."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .backend import CollectiveBackend, OutcomeBackend, ScoringBackend, SolutionTooLong
    from .engine_server import EngineServerBackend
    from .eta import eta_or_as_trained, format_at_eta, scores_at_eta
    from .export import export_reward_model
    from .implicit import ImplicitBackend
    from .judge import JudgeScorer
    from .loading import load_backend, load_format
    from .local import LocalBackend
    from .monte_carlo import MonteCarloScorer
    from .remote import RemoteBackend
    from .renamed import RemoteStepScorer
    from .scorer import StepScorer, solution_scores
    from .scorer_file import load_scorer_file
    from .sharded import ShardedBackend
    from .vllm import VLLMBackend

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "backend": ["CollectiveBackend", "OutcomeBackend", "ScoringBackend", "SolutionTooLong"],
        "engine_server": ["EngineServerBackend"],
        "eta": ["eta_or_as_trained", "format_at_eta", "scores_at_eta"],
        "export": ["export_reward_model"],
        "implicit": ["ImplicitBackend"],
        "judge": ["JudgeScorer"],
        "loading": ["load_backend", "load_format"],
        "local": ["LocalBackend"],
        "monte_carlo": ["MonteCarloScorer"],
        "remote": ["RemoteBackend"],
        "renamed": ["RemoteStepScorer"],
        "scorer": ["StepScorer", "solution_scores"],
        "scorer_file": ["load_scorer_file"],
        "sharded": ["ShardedBackend"],
        "vllm": ["VLLMBackend"],
    },
)
