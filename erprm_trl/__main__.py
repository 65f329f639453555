"""`python -m erprm_trl` is the command `erprm`.

Processes that accelerate launches start here too: it runs the module by its name, without a path.
"""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
