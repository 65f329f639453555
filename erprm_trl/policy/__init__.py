"""Step scores train a policy: a reward function for any TRL trainer, RAFT, step GRPO, step PPO, and their guard."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .guards import PolicyGuard
    from .prompts import PromptArguments, prompt_dataset
    from .raft_config import RAFTConfig
    from .raft_trainer import RAFTTrainer
    from .reward_function import AnswerReward, StepRewardFunction
    from .step_config import StepGRPOConfig, StepPPOConfig
    from .step_grpo_trainer import StepGRPOTrainer
    from .step_ppo_trainer import StepPPOTrainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "guards": ["PolicyGuard"],
        "prompts": ["PromptArguments", "prompt_dataset"],
        "raft_config": ["RAFTConfig"],
        "raft_trainer": ["RAFTTrainer"],
        "reward_function": ["AnswerReward", "StepRewardFunction"],
        "step_config": ["StepGRPOConfig", "StepPPOConfig"],
        "step_grpo_trainer": ["StepGRPOTrainer"],
        "step_ppo_trainer": ["StepPPOTrainer"],
    },
)
