"""Entropy-regularised process reward models, and policies that learn from them, for people who train with TRL.

Questions become graded rollouts, and rollouts become soft step labels (`rollouts`). Labels train a reward model
(`reward_model`). Its step scores select answers (`selection`) and train policies (`policy`). The formulas are in
`functional`, and `dial` is a small built-in task.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy_exports
from ._moved import install


if TYPE_CHECKING:
    from .policy import (
        AnswerReward,
        PolicyGuard,
        RAFTConfig,
        RAFTTrainer,
        StepGRPOConfig,
        StepGRPOTrainer,
        StepPPOConfig,
        StepPPOTrainer,
        StepRewardFunction,
    )
    from .reward_model import (
        ERPRMConfig,
        ERPRMTrainer,
        JudgeScorer,
        LabelledSource,
        MonteCarloScorer,
        PRMFormat,
        StepScorer,
        load_labelled_steps,
    )
    from .rollouts import (
        EndpointSampler,
        RolloutDataset,
        TransformersSampler,
        VLLMSampler,
        collect_rollouts,
        grade,
        load_questions,
        load_solutions,
    )
    from .selection import best_of_n, preference_pairs

__version__ = "0.2.0"
install()  # old import paths still work, with a warning

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "policy": [
            "AnswerReward",
            "PolicyGuard",
            "RAFTConfig",
            "RAFTTrainer",
            "StepGRPOConfig",
            "StepGRPOTrainer",
            "StepPPOConfig",
            "StepPPOTrainer",
            "StepRewardFunction",
        ],
        "reward_model": [
            "ERPRMConfig",
            "ERPRMTrainer",
            "JudgeScorer",
            "LabelledSource",
            "MonteCarloScorer",
            "PRMFormat",
            "StepScorer",
            "load_labelled_steps",
        ],
        "rollouts": [
            "EndpointSampler",
            "RolloutDataset",
            "TransformersSampler",
            "VLLMSampler",
            "collect_rollouts",
            "grade",
            "load_questions",
            "load_solutions",
        ],
        "selection": ["best_of_n", "preference_pairs"],
    },
)
