"""Serves a reward model over HTTP: `erprm serve`.

ERPRM_SCORER_TOKEN=... python recipes/serve_scorer.py --config recipes/dial/serve_scorer.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.serve import ServeArguments, main


__all__ = ["ServeArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
