"""The protocol of samplers, its data types, and functions that all samplers use.

A sampler has the method `sample(prompts, num_samples, seed, stop, until)`, and `settings`, which are stored in the
manifest of a collection. The same call on the same machine gives the same completions, independently of earlier calls.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Prompt(NamedTuple):
    """
    A text to continue.

    Args:
        question (`str`):
            Text of the question.
        prefix (`str`, *optional*, defaults to `""`):
            Beginning of the solution, which is continued. Empty for a new solution.
        prefix_ids (`tuple[int, ...]`, *optional*):
            Sampled tokens of the prefix. Without them, the prefix is encoded, which may give other tokens.
        prompt (`str` or `list[dict[str, str]]`, *optional*):
            Text or conversation that the policy reads instead of the question in the template.
        tools (`list[dict[str, Any]]`, *optional*):
            JSON schemas of the tools that the chat template shows.
    """

    question: str
    prefix: str = ""
    prefix_ids: tuple[int, ...] | None = None
    prompt: str | list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None


class Completion(NamedTuple):
    """
    A sampled text.

    Args:
        text (`str`):
            Text after the prefix. If sampling stopped at a string of `stop`, the text includes this string. If it
            ended at a string of `until`, the text does not include it.
        finished (`bool`):
            Whether the text is complete, i.e. ended with an end token or at a string of `until`.
        num_tokens (`int`):
            Number of sampled tokens.
        token_ids (`tuple[int, ...]`, *optional*):
            Sampled tokens, including the end token. Empty if the sampler does not return them.
    """

    text: str
    finished: bool
    num_tokens: int
    token_ids: tuple[int, ...] = ()


def check_sampler(name: str, sampler: Any) -> None:
    """Raises a `TypeError` that names the argument, if it is the path of a model and not a sampler."""
    if isinstance(sampler, (str, os.PathLike)):
        raise TypeError(
            f"{name}: got {os.fspath(sampler)!r}, expected a sampler, such as "
            "TransformersSampler.from_pretrained(path)."
        )


def derived_seed(*parts: int | str) -> int:
    """Derives a seed for one purpose, which is independent of the seeds for other purposes."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") % 2**31


Progress = Callable[[int, int], None]


class Sampler(Protocol):
    """
    The protocol of samplers, for `collect_rollouts` and the policy trainers.

    A sampler may also have a [`PromptFormat`] as attribute `prompt_format`. Prefixes of a solution are then continued
    from their sampled tokens, and otherwise from their text. `accelerators` is a list of the names of its devices, for
    labels per GPU-hour, and is empty for a sampler on this machine's processor. `prefix_cache_counts()` returns how
    many prompt tokens came from a prefix cache, and how many there were.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine a sample, as JSON values."""

    def sample(
        self,
        prompts: list[Prompt],
        num_samples: int,
        seed: int,
        stop: Sequence[str] = (),
        until: Sequence[str] = (),
        progress: Progress | None = None,
        prompt_seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """
        Samples `num_samples` completions of each prompt.

        Args:
            prompts (`list[Prompt]`):
                Texts to continue.
            num_samples (`int`):
                Number of completions per prompt.
            seed (`int`):
                Seed of the samples.
            stop (`Sequence[str]`, *optional*):
                Strings after which a completion stops without being finished, for guided search. Not passed if there
                are no such strings.
            until (`Sequence[str]`, *optional*):
                Strings before which a completion ends and is finished. Not passed if there are no such strings.
            progress (`Callable[[int, int], None]`, *optional*):
                Function to call from time to time, with the number of completions that have ended and of tokens that
                were sampled since its last call. Not passed to a sampler without this parameter.
            prompt_seeds (`Sequence[int]`, *optional*):
                One seed per prompt, which replaces `seed`. The completions of a prompt then do not depend on the other
                prompts of the call. Not passed to a sampler without this parameter.

        Returns:
            `list[list[Completion]]`: the completions of each prompt, in the order of the prompts.
        """


def decode_continuation(tokenizer, prompt: list[int], new: list[int], context: int = 4) -> str:
    """
    Decodes the tokens `new` as the continuation of `prompt`. Without the last tokens of the prompt, many tokenizers
    would drop the space before the first word.
    """
    tail = prompt[-context:]
    before = tokenizer.decode(tail, skip_special_tokens=True)
    both = tokenizer.decode(tail + new, skip_special_tokens=True)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """
    Converts the argument `stop` to a list.

    Raises:
        `ValueError`: if it contains an empty string, or an item that is not a string.
    """
    strings = [stop] if isinstance(stop, str) else list(stop or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(
                f"stop: got {string!r} in {strings}, expected non-empty strings, such as ['\\n\\nQuestion:']. Leave "
                "stop out if only an end token should end a solution."
            )
    return strings


def holds_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether a text contains one of the stop strings."""
    return any(string in text for string in stop)
