"""Runs all stages on the embedded task: `erprm quickstart`.

make quickstart
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.quickstart import QuickstartArguments, main


__all__ = ["QuickstartArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["quickstart", *sys.argv[1:]]))
