"""Estimates the memory that a training takes on each GPU: `erprm memory`.

python recipes/estimate_memory.py --model_name_or_path meta-llama/Llama-3.1-8B --zero_stage 3 --num_gpus 8
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.memory import MemoryArguments, main


__all__ = ["MemoryArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["memory", *sys.argv[1:]]))
