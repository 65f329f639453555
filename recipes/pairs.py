"""Makes preference pairs from the solutions of a collection: `erprm pairs`.

python recipes/pairs.py --config recipes/dial/pairs.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.pairs import PairsArguments, main


__all__ = ["PairsArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["pairs", *sys.argv[1:]]))
