"""Compares reward models at choosing among sampled solutions: `erprm best-of-n`.

python recipes/best_of_n.py --config recipes/dial/best_of_n.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.best_of_n import BestOfNArguments, main


__all__ = ["BestOfNArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["best-of-n", *sys.argv[1:]]))
