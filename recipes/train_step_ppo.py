"""Trains a policy with PPO on step scores: `erprm ppo`.

python recipes/train_step_ppo.py --config recipes/dial/train_step_ppo.yaml
accelerate launch recipes/train_step_ppo.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_step_ppo.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.ppo import PromptArguments, RewardArguments, main


__all__ = ["PromptArguments", "RewardArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["ppo", *sys.argv[1:]]))
