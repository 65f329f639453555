"""Writes a page about a run: `erprm report`.

python recipes/report.py --folder outputs/quickstart
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.report import ReportArguments, main


__all__ = ["ReportArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
