"""Compares step scores with the success of continuations: `erprm calibrate`.

python recipes/calibration.py --config recipes/dial/calibration.yaml
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.calibrate import CalibrationArguments, main


__all__ = ["CalibrationArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["calibrate", *sys.argv[1:]]))
