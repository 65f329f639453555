"""Trains a policy with GRPO on step scores: `erprm grpo`.

python recipes/train_step_grpo.py --config recipes/dial/train_step_grpo.yaml
accelerate launch recipes/train_step_grpo.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_step_grpo.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.grpo import PromptArguments, RewardArguments, main


__all__ = ["PromptArguments", "RewardArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["grpo", *sys.argv[1:]]))
