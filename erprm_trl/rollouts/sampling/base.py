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


class PromptFormat:
    """
    Turns a [`Prompt`] into the text a policy reads; shared by all samplers.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer. If it has a chat template, the question becomes a user message and the prefix opens
            the assistant's turn.
        prompt_template (`str`, *optional*):
            Text around the question, with `{question}` in it, e.g. `"{question}\\nReason step by step."`; the content
            of the user message where there is a chat template. Defaults to the question alone.
        system_prompt (`str`, *optional*):
            A system message; needs a chat template.
        use_chat_template (`bool`, *optional*):
            Defaults to whether the tokenizer has one.
    """

    def __init__(
        self,
        tokenizer,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        use_chat_template: bool | None = None,
    ):
        self.tokenizer = tokenizer
        self.prompt_template = "{question}" if prompt_template is None else prompt_template
        self.system_prompt = system_prompt
        has_template = tokenizer.chat_template is not None
        self.use_chat_template = has_template if use_chat_template is None else use_chat_template
        if "{question}" not in self.prompt_template:
            raise ValueError(f"Prompt template: got {prompt_template!r}, expected it to contain '{{question}}'.")
        if self.use_chat_template and not has_template:
            raise ValueError("The tokenizer has no chat template: set one, or use_chat_template=False.")
        if system_prompt is not None and not self.use_chat_template:
            raise ValueError("A system prompt needs a chat template: put its text into prompt_template instead.")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prompt_template": self.prompt_template,
            "system_prompt": self.system_prompt,
            "use_chat_template": self.use_chat_template,
        }

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the question and the prefix, ready to be continued."""
        text = self.prompt_template.replace("{question}", prompt.question)
        if not self.use_chat_template:
            return self._without_eos(self.tokenizer(text + prompt.prefix)["input_ids"])
        messages = [{"role": "user", "content": text}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        # The template writes its own special tokens. Text after the generation prompt is what the assistant has said
        # so far; a user's turn that quotes the prefix would ask another question.
        opening = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(opening + prompt.prefix, add_special_tokens=False)["input_ids"]

    def _without_eos(self, ids: list[int]) -> list[int]:
        # Some tokenizers close every text with EOS; what follows it would be another text.
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


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
