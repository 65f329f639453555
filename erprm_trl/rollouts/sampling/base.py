"""Samples solutions and continuations of prefixes, always as the assistant's turn. Grading and storage come later.

A sampler has two members: `sample(prompts, num_samples, seed, stop)` and `settings`, what the manifest of a collection
records. The same call on the same machine gives the same completions, whatever was sampled before.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Prompt(NamedTuple):
    """What is to be continued: a question, and the assistant's text so far (empty for a whole solution)."""

    question: str
    prefix: str = ""


class Completion(NamedTuple):
    """What was sampled: the text after the prefix, whether it ended by itself, its length in tokens, and the tokens,
    the one that ended it included. One that was stopped holds the string that stopped it, and is not finished."""

    text: str
    finished: bool
    num_tokens: int
    token_ids: tuple[int, ...] = ()


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose, far from those of every other."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") % 2**31


class Sampler(Protocol):
    """The protocol of `collect_rollouts` and the policies."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes a sample, as JSON values."""

    def sample(
        self, prompts: list[Prompt], num_samples: int, seed: int, stop: Sequence[str] = ()
    ) -> list[list[Completion]]:
        """`num_samples` completions of each prompt, in order, each ending where one of the strings `stop` first
        stands in it. `collect_rollouts` and the policies give no `stop`, guided search does."""


def decode_continuation(tokenizer, prompt: list[int], new: list[int], context: int = 4) -> str:
    """
    Text of the tokens `new` as it stands after `prompt`. Decoded alone, many tokenizers would drop the space before
    the first word.
    """
    tail = prompt[-context:]
    before = tokenizer.decode(tail, skip_special_tokens=True)
    both = tokenizer.decode(tail + new, skip_special_tokens=True)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def holds_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the strings at which to stop stands in a text."""
    return any(string in text for string in stop)
