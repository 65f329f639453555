"""Trains a policy with GRPO on step rewards.

erprm grpo --recipe dial
erprm grpo --recipe qwen2.5-math-1.5b-gsm8k --accelerate_config zero2
"""

import trl

import erprm_trl

from ..policy import PromptArguments
from .training import RewardArguments, train_policy


def main(
    prompts: PromptArguments, reward: RewardArguments, training: "erprm_trl.StepGRPOConfig", model: "trl.ModelConfig"
) -> "erprm_trl.StepGRPOTrainer":
    """Trains a policy and saves it."""
    return train_policy(erprm_trl.StepGRPOTrainer, prompts, reward, training, model)
