"""Runs every stage on the embedded task: rollouts, labels at several eta, reward models, best-of-N and three policies.

make quickstart
"""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the quickstart needs no network

from trl import TrlParser

from erprm_trl.scripts.quickstart import QuickstartArguments, main


if __name__ == "__main__":
    main(TrlParser(QuickstartArguments).parse_args_and_config()[0])
