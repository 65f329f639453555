"""Draws texts from a sampler for a scoring backend: with a seed per prompt, counted, and checked for length.

The texts of a prompt depend on its own seed only, so scores do not depend on how solutions are batched or ordered.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from ...rollouts.sampling.base import Completion, Prompt, Sampler, check_sampler, derived_seed


class SampledTexts:
    """
    A sampler, as scoring backends use it.

    Args:
        sampler ([`~erprm_trl.rollouts.Sampler`]):
            Sampler of the language model. If its method `sample` has no parameter `prompt_seeds`, it is called once
            per prompt.
        seed (`int`):
            Seed of all texts.
        context_length (`int`, *optional*):
            Maximum length of a prompt and its completion, in tokens. Defaults to the sampler's, if it has one.
        until (`Sequence[str]`, *optional*):
            Strings before which a text ends.

    Attributes:
        costs (`Counter`): number of sampled `texts` and `tokens`, and of texts that are `unfinished` because they
            reached the sampler's limit.
    """

    def __init__(self, sampler: Sampler, seed: int, *, context_length: int | None = None, until: Sequence[str] = ()):
        check_sampler("sampler", sampler)
        self.sampler, self.seed, self.until = sampler, seed, tuple(until)
        own_length = getattr(sampler, "context_length", None)
        self.context_length = own_length if context_length is None else context_length
        self.prompt_format = getattr(sampler, "prompt_format", None)
        self.is_greedy = sampler.settings.get("temperature") == 0
        self._takes_seeds = "prompt_seeds" in inspect.signature(sampler.sample).parameters
        self.costs: Counter[str] = Counter(texts=0, tokens=0, unfinished=0)

    @property
    def model_name(self) -> str:
        """Name of the language model, without the path to a local folder."""
        name = str(self.sampler.settings.get("model", type(self.sampler).__name__))
        return Path(name).name if Path(name).is_absolute() else name

    def digest(self, **settings: Any) -> str:
        """A short hash of all settings of the sampler, and of further settings of a scorer."""
        own = [self.sampler.settings, self.context_length, self.until]
        text = json.dumps([own, settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def draw(
        self, prompts: list[Prompt], num_samples: int, keys: Sequence[Sequence[int | str]]
    ) -> list[list[Completion]]:
        """
        Samples completions of each prompt.

        Args:
            prompts (`list[Prompt]`):
                Texts to continue.
            num_samples (`int`):
                Number of completions per prompt.
            keys (`Sequence[Sequence[int | str]]`):
                Names of each prompt's seed. The same names give the same completions.

        Returns:
            `list[list[Completion]]`: the completions of each prompt.
        """
        if not prompts:
            return []
        seeds = [derived_seed(self.seed, text_hash(*key)) for key in keys]
        options = {"until": self.until} if self.until else {}
        if self._takes_seeds:
            completions = self.sampler.sample(prompts, num_samples, self.seed, prompt_seeds=seeds, **options)
        else:
            completions = [
                self.sampler.sample([prompt], num_samples, seed, **options)[0]
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        for completion in (completion for samples in completions for completion in samples):
            self.costs["texts"] += 1
            self.costs["tokens"] += completion.num_tokens
            self.costs["unfinished"] += not completion.finished
        return completions

    def excess(self, prompt: Prompt) -> str | None:
        """Says why a prompt leaves no room for a completion, or returns `None` if there is room, or if the length of
        prompts is not known."""
        if self.context_length is None or self.prompt_format is None:
            return None
        num_tokens = len(self.prompt_format.encode(prompt))
        if num_tokens < self.context_length:
            return None
        return (
            f"has {num_tokens} tokens with the prompt, expected fewer than the context of {self.context_length} of "
            f"{self.model_name}. Shorten the solution, or leave it out."
        )


class BoundedCache(dict):
    """
    A dictionary that forgets its oldest entry when it is full.

    Args:
        max_size (`int`):
            Maximum number of entries. 0 keeps nothing.
    """

    def __init__(self, max_size: int):
        super().__init__()
        self.max_size = max_size

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        if len(self) > self.max_size:
            del self[next(iter(self))]


def text_hash(*parts: int | str | Sequence[str | None]) -> str:
    """A hash of texts, as a key of a cache and as the name of a seed."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def check_at_least(name: str, value: int, least: int) -> None:
    """
    Checks a number.

    Raises:
        `ValueError`: if the number is smaller than `least`, or not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}: got {value!r} ({type(value).__name__}), expected a whole number. Correct it.")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}. Raise it.")
