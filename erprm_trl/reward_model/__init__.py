"""Trains process reward models on step labels, and scores the steps of solutions with them."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .encoding import EncodedSolution, encode_solution, encode_solutions
    from .prm_format import PRMFormat
    from .scoring import JudgeScorer, MonteCarloScorer, RemoteBackend, RemoteStepScorer, ScoringBackend, StepScorer
    from .trainer import ERPRMConfig, ERPRMTrainer, LabelledSource, from_stepwise, load_labelled_steps, to_stepwise

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "encoding": ["EncodedSolution", "encode_solution", "encode_solutions"],
        "prm_format": ["PRMFormat"],
        "scoring": [
            "JudgeScorer",
            "MonteCarloScorer",
            "RemoteBackend",
            "RemoteStepScorer",
            "ScoringBackend",
            "StepScorer",
        ],
        "trainer": [
            "ERPRMConfig",
            "ERPRMTrainer",
            "LabelledSource",
            "from_stepwise",
            "load_labelled_steps",
            "to_stepwise",
        ],
    },
)
