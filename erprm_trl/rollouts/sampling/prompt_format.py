"""Turns a question into the text and the tokens that a policy reads: prompt template, chat template and few-shot
examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Prompt, decode_continuation
from .token_cuts import cut_tokens


class PromptFormat:
    """
    Turns a [`Prompt`] into the tokens that a policy reads. All samplers use it.

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
            Whether to apply the tokenizer's chat template. Defaults to whether the tokenizer has one.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            More arguments of the chat template, e.g. `{"enable_thinking": False}`.
        examples (`Sequence[dict[str, str]]`, *optional*):
            Solved examples (few-shot) before the question, each with `question` and `solution`. With a chat template
            they are a user message, made by `prompt_template`, and an assistant message. Without one they are text:
            the template's text of the example's question, its solution, and a blank line. A space is put between the
            text and the solution where neither has white space there. Give the separator of the examples as `stop`
            where solutions are sampled: a base model goes on with a question of its own after its answer.
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
            raise ValueError(f"Prompt template: got {prompt_template!r}, expected it to contain '{{question}}'.")
        if self.use_chat_template and not has_template:
            raise ValueError("The tokenizer has no chat template: set one, or use_chat_template=False.")
        if system_prompt is not None and not self.use_chat_template:
            raise ValueError("A system prompt needs a chat template: put its text into prompt_template instead.")
        if self.chat_template_kwargs and not self.use_chat_template:
            raise ValueError(
                f"chat_template_kwargs: got {self.chat_template_kwargs} without a chat template, which alone reads "
                "them. Leave them out, or set use_chat_template=True."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes a prompt, as JSON values. Settings that are not used are left out."""
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
        if prompt.prompt is not None:
            return self._apply_chat_template(prompt.prompt)
        question = prompt.question
        if not self.use_chat_template:
            shots = [_joined(self._fill(shot["question"]), shot["solution"]) + "\n\n" for shot in self.examples]
            return "".join(shots) + self._fill(question)
        messages = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        for shot in self.examples:
            messages.append({"role": "user", "content": self._fill(shot["question"])})
            messages.append({"role": "assistant", "content": shot["solution"]})
        messages.append({"role": "user", "content": self._fill(question)})
        return self._apply_chat_template(messages)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the question and the prefix, ready to be continued."""
        # Text after the generation prompt is what the assistant has said so far; a user's turn that quotes the prefix
        # would ask another question.
        text = self.render(prompt)
        if prompt.prefix_ids is None:
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
        The sampled tokens of prefixes of a solution.

        Args:
            prompt ([`Prompt`]):
                What the solution was sampled for.
            token_ids (`Sequence[int]`):
                Sampled tokens of the solution. Empty if the sampler does not know them.
            prefixes (`Sequence[str]`):
                Prefixes of the solution's text, each as long as the one before or longer.

        Returns:
            `list[tuple[int, ...] | None]`: For each prefix tokens that decode to exactly its text. Where a token holds
            the prefix's end and what follows it, its part of the prefix is encoded, and the tokens before it are those
            that were sampled. `None` where there are no such tokens.
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

    def _apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        if not self.use_chat_template:
            if [message["role"] for message in messages] == ["user"]:
                return messages[0]["content"]
            raise ValueError(
                f"Prompt: got the messages {str(messages)[:120]}, expected a text or one user message, for there is "
                "no chat template to apply. Set the tokenizer's chat_template, leave use_chat_template unset, or give "
                "texts as prompts."
            )
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self.chat_template_kwargs
        )

    def _fill(self, question: str) -> str:
        return self.prompt_template.replace("{question}", question)

    def _without_eos(self, ids: list[int]) -> list[int]:
        # Some tokenizers close every text with EOS; what follows it would be another text.
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


def _checked_example(index: int, example: Mapping[str, str]) -> dict[str, str]:
    texts = {name: example.get(name) for name in ("question", "solution")} if isinstance(example, Mapping) else {}
    if not texts or len(example) != 2 or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise ValueError(
            f"examples[{index}]: got {str(example)[:120]!r}, expected a mapping with the texts 'question' and "
            "'solution' and nothing else."
        )
    return texts


def _joined(prompt: str, solution: str) -> str:
    return prompt + (solution if prompt[-1:].isspace() or solution[0].isspace() else f" {solution}")
