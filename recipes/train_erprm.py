"""Trains a process reward model: `erprm train`.

python recipes/train_erprm.py --config recipes/dial/train_erprm.yaml
accelerate launch recipes/train_erprm.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_erprm.yaml --eta inf
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.train import DataArguments, main


__all__ = ["DataArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
