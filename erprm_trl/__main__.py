"""`python -m erprm_trl` is the command `erprm`.

Processes that accelerate launches start here too, because a module is found wherever the package is installed.
"""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
