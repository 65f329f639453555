"""Shows the noise of labels that can be seen without the truth: `erprm inspect-labels`.

python recipes/inspect_labels.py --rollouts outputs/dial/rollouts --output_dir outputs/dial/label_noise
"""

import sys

from erprm_trl import cli
from erprm_trl.scripts.inspect_labels import InspectLabelsArguments, main


__all__ = ["InspectLabelsArguments", "main"]

if __name__ == "__main__":
    sys.exit(cli.main(["inspect-labels", *sys.argv[1:]]))
