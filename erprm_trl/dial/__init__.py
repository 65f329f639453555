"""The embedded task: word problems whose steps can be checked, a tokenizer, and a small pretrained policy that runs on
any laptop. Tests, benchmarks and the quickstart use it."""

from pathlib import Path
from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .solutions import make_solutions
    from .task import ANSWER_PATTERN, SEPARATOR, DialQuestion, check_steps, make_questions
    from .tokenizer import BAD_MARK, GOOD_MARK, build_tokenizer

BASE_PATH = str(Path(__file__).with_name("base"))

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "solutions": ["make_solutions"],
        "task": ["ANSWER_PATTERN", "SEPARATOR", "DialQuestion", "check_steps", "make_questions"],
        "tokenizer": ["BAD_MARK", "GOOD_MARK", "build_tokenizer"],
    },
)
__all__ = [*__all__, "BASE_PATH"]
