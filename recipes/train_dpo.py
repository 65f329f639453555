"""Trains a policy with DPO on preference pairs: `erprm dpo`.

python recipes/train_dpo.py --config recipes/dial/train_dpo.yaml
accelerate launch recipes/train_dpo.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_dpo.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.dpo import DataArguments, main


__all__ = ["DataArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["dpo", *sys.argv[1:]]))
