"""Writes solutions step by step, guided by a reward model: `erprm search`.

python recipes/guided_search.py --config recipes/dial/guided_search.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.search import GuidedSearchArguments, main


__all__ = ["GuidedSearchArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["search", *sys.argv[1:]]))
