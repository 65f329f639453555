"""Formats questions as prompts for a policy, with a prompt template, the chat template and few-shot examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...reasoning import THINK_OPEN, prompt_opens_thinking
from .base import Prompt, decode_continuation
from .token_cuts import cut_tokens


class PromptFormat:
    """
    Converts a [`Prompt`] to the tokens that a policy reads. All samplers use this class.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy. If it has a chat template, the question becomes a user message, and the prefix is
            the beginning of the assistant's turn.
        prompt_template (`str`, *optional*):
            Template of the prompt, which contains `{question}`, e.g. `"{question}\\nReason step by step."`. With a
            chat template, it is the content of the user message. Defaults to the question only.
        system_prompt (`str`, *optional*):
            System message. Needs a chat template.
        use_chat_template (`bool`, *optional*):
            Whether to apply the tokenizer's chat template. Defaults to `True` if the tokenizer has a chat template.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Additional arguments of the chat template, e.g. `{"enable_thinking": False}`.
        examples (`Sequence[dict[str, str]]`, *optional*):
            Solved examples for a few-shot prompt, each with `question` and `solution`. With a chat template, each
            example is a user message with the filled `prompt_template`, and an assistant message. Without a chat
            template, each example is the filled template, the solution and a blank line, with a space between template
            and solution if there is no white space. Pass the separator of the examples as `stop` when you sample
            solutions, because a base model continues with another question after its answer.
    """

    def __init__(
        self,
        tokenizer,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        use_chat_template: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        examples: Sequence[Mapping[str, str]] | None = None,
    ):
        self.tokenizer = tokenizer
        self.prompt_template = "{question}" if prompt_template is None else prompt_template
        self.system_prompt = system_prompt
        has_template = tokenizer.chat_template is not None
        self.use_chat_template = has_template if use_chat_template is None else use_chat_template
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.examples = [_checked_example(index, example) for index, example in enumerate(examples or [])]
        if "{question}" not in self.prompt_template:
            raise ValueError(
                f"Prompt template: got {prompt_template!r}, expected it to contain '{{question}}'. Add it where the "
                "question should be."
            )
        if self.use_chat_template and not has_template:
            raise ValueError(
                "use_chat_template: got True with a tokenizer that has no chat template, expected one. Set "
                "tokenizer.chat_template, or use_chat_template=False."
            )
        if system_prompt is not None and not self.use_chat_template:
            raise ValueError(
                "system_prompt: got a system prompt without a chat template, expected a chat template. Put the text "
                "into prompt_template instead."
            )
        if self.chat_template_kwargs and not self.use_chat_template:
            raise ValueError(
                f"chat_template_kwargs: got {self.chat_template_kwargs} without a chat template, expected a chat "
                "template. Leave them out, or set use_chat_template=True."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine a prompt, as JSON values. Unused settings are left out."""
        settings: dict[str, Any] = {
            "prompt_template": self.prompt_template,
            "system_prompt": self.system_prompt,
            "use_chat_template": self.use_chat_template,
        }
        if self.chat_template_kwargs:
            settings["chat_template_kwargs"] = self.chat_template_kwargs
        if self.examples:
            settings["examples"] = self.examples
        return settings

    def render(self, prompt: Prompt) -> str:
        """The text that the policy reads before its solution."""
        if isinstance(prompt.prompt, str):
            return prompt.prompt
        if prompt.prompt is None and not self.use_chat_template:
            return plain_prompt(prompt.question, self.prompt_template, self.examples)
        return self._apply_chat_template(self.messages(prompt), prompt.tools)

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The messages to which the chat template is applied."""
        if isinstance(prompt.prompt, list):
            return prompt.prompt
        return chat_messages(prompt.question, self.prompt_template, self.system_prompt, self.examples)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the question and the prefix."""
        # The prefix comes after the generation prompt, as the beginning of the assistant's turn. A user message that
        # quotes the prefix would be another question.
        text = self.render(prompt)
        if prompt.prefix_ids is None:
            if prompt.prefix.lstrip().startswith(THINK_OPEN) and prompt_opens_thinking(text):
                # The solution of another policy, with the delimiter that the chat template writes, too.
                text = text.rstrip().removesuffix(THINK_OPEN)
            text += prompt.prefix
        if self.use_chat_template and not isinstance(prompt.prompt, str):  # the template writes its special tokens
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self._without_eos(self.tokenizer(text)["input_ids"])
        return [*ids, *(prompt.prefix_ids or ())]

    def prefix_ids(
        self, prompt: Prompt, token_ids: Sequence[int], prefixes: Sequence[str]
    ) -> list[tuple[int, ...] | None]:
        """
        Finds the sampled tokens of prefixes of a solution.

        Args:
            prompt ([`Prompt`]):
                Prompt of the solution.
            token_ids (`Sequence[int]`):
                Sampled tokens of the solution. Empty if the sampler does not return them.
            prefixes (`Sequence[str]`):
                Prefixes of the solution's text, in order of length.

        Returns:
            `list[tuple[int, ...] | None]`: for each prefix, tokens that decode to exactly its text, or `None` if there
            are no such tokens. If a token contains both the end of the prefix and text after it, the end is encoded
            again, and the tokens before it are the sampled tokens.
        """
        if not token_ids:
            return [None] * len(prefixes)
        opening = self.encode(prompt)
        cuts = cut_tokens(self.tokenizer, opening, token_ids, prefixes)
        return [
            tuple(token_ids[:cut]) if exact else self._with_encoded_end(opening, list(token_ids[: cut - 1]), prefix)
            for prefix, (cut, exact) in zip(prefixes, cuts, strict=True)
        ]

    def _with_encoded_end(self, opening: list[int], kept: list[int], prefix: str) -> tuple[int, ...] | None:
        end = prefix[len(decode_continuation(self.tokenizer, opening, kept)) :]
        ids = kept + self.tokenizer(end, add_special_tokens=False)["input_ids"]
        return tuple(ids) if decode_continuation(self.tokenizer, opening, ids) == prefix else None

    def _apply_chat_template(self, messages: list[dict[str, str]], tools: list[dict[str, Any]] | None = None) -> str:
        if not self.use_chat_template:
            if [message["role"] for message in messages] == ["user"]:
                return messages[0]["content"]
            raise ValueError(
                f"Prompt: got the messages {str(messages)[:120]} without a chat template, expected a text or one user "
                "message. Set the tokenizer's chat_template, leave use_chat_template unset, or pass texts as prompts."
            )
        settings = self.chat_template_kwargs if tools is None else {"tools": tools, **self.chat_template_kwargs}
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **settings)

    def _without_eos(self, ids: list[int]) -> list[int]:
        # Some tokenizers append EOS to every text, after which the model would start another text.
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


def chat_messages(
    question: str,
    prompt_template: str = "{question}",
    system_prompt: str | None = None,
    examples: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """The messages to which [`PromptFormat`] applies the chat template. See there for the arguments."""
    messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    for shot in examples:
        messages.append({"role": "user", "content": _fill(prompt_template, shot["question"])})
        messages.append({"role": "assistant", "content": shot["solution"]})
    return [*messages, {"role": "user", "content": _fill(prompt_template, question)}]


def plain_prompt(
    question: str, prompt_template: str = "{question}", examples: Sequence[Mapping[str, str]] = ()
) -> str:
    """The prompt of [`PromptFormat`] without a chat template. See there for the arguments."""
    shots = [_joined(_fill(prompt_template, shot["question"]), shot["solution"]) + "\n\n" for shot in examples]
    return "".join(shots) + _fill(prompt_template, question)


def _fill(prompt_template: str, question: str) -> str:
    return prompt_template.replace("{question}", question)


def _checked_example(index: int, example: Mapping[str, str]) -> dict[str, str]:
    texts = {name: example.get(name) for name in ("question", "solution")} if isinstance(example, Mapping) else {}
    if not texts or len(example) != 2 or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise ValueError(
            f"examples[{index}]: got {str(example)[:120]!r}, expected a mapping with the texts 'question' and "
            "'solution' and nothing else. Correct this example."
        )
    return texts


def _joined(prompt: str, solution: str) -> str:
    return prompt + (solution if prompt[-1:].isspace() or solution[0].isspace() else f" {solution}")
