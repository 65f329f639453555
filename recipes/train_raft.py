"""Trains a policy in rounds of sampling and selection: `erprm raft`.

python recipes/train_raft.py --config recipes/dial/train_raft.yaml
accelerate launch recipes/train_raft.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_raft.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.raft import DataArguments, main


__all__ = ["DataArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["raft", *sys.argv[1:]]))
