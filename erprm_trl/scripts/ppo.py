"""Trains a policy with PPO on step rewards.

erprm ppo --recipe dial
erprm ppo --recipe qwen2.5-math-1.5b-gsm8k --accelerate_config zero2
"""

import trl

import erprm_trl

from ..policy import PromptArguments
from .training import RewardArguments, train_policy


def main(
    prompts: PromptArguments, reward: RewardArguments, training: "erprm_trl.StepPPOConfig", model: "trl.ModelConfig"
) -> "erprm_trl.StepPPOTrainer":
    """Trains a policy and saves it."""
    return train_policy(erprm_trl.StepPPOTrainer, prompts, reward, training, model)
