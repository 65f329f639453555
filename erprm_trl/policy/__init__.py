"""Trains policies with step scores: a reward function for any TRL trainer, RAFT, step GRPO and step PPO, DPO
on pairs of solutions or steps, and a guard that stops a run when the policy exploits the reward model."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .answer_reward import AnswerReward
    from .guards import PolicyGuard
    from .online import StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer
    from .prompts import PromptArguments, prompt_dataset
    from .raft import RAFTConfig, RAFTTrainer
    from .reward_function import StepRewardFunction
    from .step_dpo_trainer import StepDPOTrainer, without_end_tokens

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "answer_reward": ["AnswerReward"],
        "guards": ["PolicyGuard"],
        "online": ["StepGRPOConfig", "StepGRPOTrainer", "StepPPOConfig", "StepPPOTrainer"],
        "prompts": ["PromptArguments", "prompt_dataset"],
        "raft": ["RAFTConfig", "RAFTTrainer"],
        "reward_function": ["StepRewardFunction"],
        "step_dpo_trainer": ["StepDPOTrainer", "without_end_tokens"],
    },
)
