"""Tests whether low scores show where solutions go wrong: `erprm processbench`.

python recipes/processbench.py --config recipes/dial/processbench.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.processbench import ProcessBenchArguments, main


__all__ = ["ProcessBenchArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["processbench", *sys.argv[1:]]))
