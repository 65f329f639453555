"""Samples solutions and continuations of prefixes, always as the assistant's turn. Grading and storage come later.

A sampler has two members: `sample(prompts, num_samples, seed, stop, until)` and `settings`, what the manifest of a
collection records. The same call on the same machine gives the same completions, whatever was sampled before.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Prompt(NamedTuple):
    """
    What is to be continued: a question, and the assistant's text so far (empty for a whole solution).

    `prefix_ids` are the tokens of the prefix as they were sampled. Without them the prefix is encoded, which may give
    other tokens. `prompt` is what the policy reads instead of the question in its template: a text as it stands, or
    the messages of a conversation.
    """

    question: str
    prefix: str = ""
    prefix_ids: tuple[int, ...] | None = None
    prompt: str | list[dict[str, str]] | None = None


class Completion(NamedTuple):
    """What was sampled: the text after the prefix, whether it ended by itself, its length in tokens, and the tokens,
    the one that ended it included. One that was stopped by `stop` holds the string that stopped it, and is not
    finished. One that was ended by `until` is finished, and holds neither the string nor its tokens."""

    text: str
    finished: bool
    num_tokens: int
    token_ids: tuple[int, ...] = ()


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose, far from those of every other."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") % 2**31


Progress = Callable[[int, int], None]


class Sampler(Protocol):
    """
    The protocol of `collect_rollouts` and the policies.

    A sampler may also have a [`PromptFormat`] as `prompt_format`. Then prefixes of a solution are continued from the
    tokens that were sampled, otherwise from their text.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes a sample, as JSON values."""

    def sample(
        self,
        prompts: list[Prompt],
        num_samples: int,
        seed: int,
        stop: Sequence[str] = (),
        until: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """
        `num_samples` completions of each prompt, in order.

        A completion ends after the first of the strings `stop`, where guided search goes on, or before the first of
        the strings `until`, where a solution is over. Neither is passed where there are no such strings.

        `progress` is called every now and then with the number of completions that have ended and of tokens that were
        sampled since its last call. It is not passed to a sampler without this parameter.
        """


def decode_continuation(tokenizer, prompt: list[int], new: list[int], context: int = 4) -> str:
    """
    Text of the tokens `new` as it stands after `prompt`. Decoded alone, many tokenizers would drop the space before
    the first word.
    """
    tail = prompt[-context:]
    before = tokenizer.decode(tail, skip_special_tokens=True)
    both = tokenizer.decode(tail + new, skip_special_tokens=True)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """
    The setting `stop` as a list.

    Raises:
        `ValueError`: if it holds something that is not a text, or an empty one.
    """
    strings = [stop] if isinstance(stop, str) else list(stop or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(
                f"stop: got {string!r} in {strings}, expected non-empty strings, such as ['\\n\\nQuestion:']. Leave "
                "stop out if nothing but the policy ends a solution."
            )
    return strings


def holds_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the strings at which to stop stands in a text."""
    return any(string in text for string in stop)
