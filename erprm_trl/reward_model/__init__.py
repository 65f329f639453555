"""Rollouts and an eta become a trained ER-PRM, and the ER-PRM gives step scores."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .dataset_forms import to_stepwise
    from .encoding import EncodedSolution, encode_solution, encode_solutions
    from .erprm_config import ERPRMConfig
    from .erprm_trainer import ERPRMTrainer
    from .prm_format import PRMFormat
    from .remote_scoring import RemoteStepScorer
    from .scoring import StepScorer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "encoding": ["EncodedSolution", "encode_solution", "encode_solutions"],
        "erprm_config": ["ERPRMConfig"],
        "erprm_trainer": ["ERPRMTrainer"],
        "prm_format": ["PRMFormat"],
        "remote_scoring": ["RemoteStepScorer"],
        "scoring": ["StepScorer"],
        "dataset_forms": ["to_stepwise"],
    },
)
