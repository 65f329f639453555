"""Makes this folder's helper module importable by its name."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parent))
