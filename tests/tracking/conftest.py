"""The other folders' helpers."""

import sys
from pathlib import Path


TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "policy"), str(TESTS / "reward_model")]
