"""Collects rollouts: `erprm collect`.

python recipes/collect_rollouts.py --config recipes/dial/collect.yaml
accelerate launch --num_processes 2 recipes/collect_rollouts.py --config recipes/dial/collect.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.collect import CollectConfig, main


__all__ = ["CollectConfig", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["collect", *sys.argv[1:]]))
