"""Writes pairs in the forms that TRL's preference trainers read, with the prompt that the policy's sampler read.

A conversational row has messages, to which the trainer applies the chat template. A text row has the rendered prompt.
Only text can begin inside the assistant's turn, so pairs that share a prefix are text.
"""

from typing import Any

from ..io.tokenizers import load_tokenizer
from ..rollouts.records import CollectionSettings
from ..rollouts.sampling.base import Prompt
from ..rollouts.sampling.prompt_format import PromptFormat, chat_messages, plain_prompt
from ..steps import whole_characters
from .solution_pairs import Pair


_CONTENT = "erprm-trl content"  # stands for a message, to find the text that a chat template writes after it


class PairTexts:
    """
    Converts pairs to rows for [`~trl.DPOTrainer`].

    Args:
        settings ([`CollectionSettings`]):
            Settings of the collection and its sampler.
        conversational (`bool`):
            Whether rows hold messages. Otherwise they hold text.
        with_ends (`bool`):
            Whether rows say if a completion ends the solution.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. Text with a chat template needs it. Defaults to the tokenizer of the sampler's
            model.

    Raises:
        `ValueError`: for messages if the collection used no chat template, or if the tokenizer cannot be loaded.
    """

    def __init__(self, settings: CollectionSettings, *, conversational: bool, with_ends: bool, tokenizer=None):
        sampler = _prompt_settings(settings)
        self.conversational, self.with_ends = conversational, with_ends
        self.prompt_template = sampler.get("prompt_template") or "{question}"
        self.system_prompt = sampler.get("system_prompt")
        self.examples = sampler.get("examples") or []
        self.chat_template_kwargs = sampler.get("chat_template_kwargs") or {}
        self.prompt_format = None
        self.end = ""
        has_template = uses_chat_template(settings)
        if conversational and not has_template:
            raise ValueError(
                "conversational: got True for a collection that used no chat template, expected one that did, because "
                "the policy read its prompts as plain text. Leave conversational unset."
            )
        if has_template and not conversational:
            tokenizer = _tokenizer_of(sampler) if tokenizer is None else tokenizer
            self.prompt_format = PromptFormat(
                tokenizer,
                self.prompt_template,
                self.system_prompt,
                True,
                self.chat_template_kwargs,
                self.examples,
            )
            # The trainer's tokenizer may add a BOS token to every text, although the template has written it.
            adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
            self._bos = tokenizer.bos_token if adds_bos else ""
            self.end = _end_of_turn(tokenizer, self.chat_template_kwargs)

    def row(self, pair: Pair) -> dict[str, Any]:
        """The row of a pair."""
        row: dict[str, Any] = {}
        question, prefix, chosen, rejected = map(
            whole_characters, (pair.question, pair.prefix, pair.chosen, pair.rejected)
        )
        if self.conversational:
            row["prompt"] = chat_messages(question, self.prompt_template, self.system_prompt, self.examples)
            row["chosen"] = [{"role": "assistant", "content": chosen}]
            row["rejected"] = [{"role": "assistant", "content": rejected}]
            if self.chat_template_kwargs:
                row["chat_template_kwargs"] = self.chat_template_kwargs
        else:
            row["prompt"] = self._opening(question) + prefix
            row["chosen"] = chosen + (self.end if pair.chosen_ends else "")
            row["rejected"] = rejected + (self.end if pair.rejected_ends else "")
        row |= {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected}
        if self.with_ends:
            row |= {"chosen_ends": pair.chosen_ends, "rejected_ends": pair.rejected_ends}
        return row

    def _opening(self, question: str) -> str:
        if self.prompt_format is None:
            return plain_prompt(question, self.prompt_template, self.examples)
        return self.prompt_format.render(Prompt(question)).removeprefix(self._bos)


def uses_chat_template(settings: CollectionSettings) -> bool:
    """Whether the sampler of a collection applied a chat template."""
    return bool(_prompt_settings(settings).get("use_chat_template"))


def suits_messages(settings: CollectionSettings, tokenizer=None) -> bool:
    """
    Whether whole solutions to the questions of a collection can be written as messages.

    They can if the sampler applied a chat template that writes a message of the assistant directly after the sampler's
    prompt. Some templates insert empty thinking. If the tokenizer cannot be loaded, the template is not checked.

    Args:
        settings ([`CollectionSettings`]):
            Settings of the collection.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. Defaults to the tokenizer of the sampler's model.
    """
    if not uses_chat_template(settings):
        return False
    if tokenizer is None:
        try:
            tokenizer = _tokenizer_of(_prompt_settings(settings))
        except ValueError:
            return True
    texts = PairTexts(settings, conversational=False, with_ends=False, tokenizer=tokenizer)
    prompt = texts.prompt_format.render(Prompt("question"))
    messages = chat_messages("question", texts.prompt_template, texts.system_prompt, texts.examples)
    messages.append({"role": "assistant", "content": _CONTENT})
    text = tokenizer.apply_chat_template(messages, tokenize=False, **texts.chat_template_kwargs)
    return text.startswith(prompt + _CONTENT)


def _prompt_settings(settings: CollectionSettings) -> dict[str, Any]:
    # Solutions that someone else wrote have no sampler. The policy that continued them has the form of the prompts.
    return settings.sampler or settings.completer or {}


def _tokenizer_of(sampler: dict[str, Any]):
    model = sampler.get("model")
    try:
        return load_tokenizer(model, trust_remote_code=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(
            f"Tokenizer: got the sampler's model {model!r}, whose tokenizer cannot be loaded ({error}), expected the "
            "policy's tokenizer, to write its chat template as text. Pass tokenizer= (--tokenizer in a command)."
        ) from error


def _end_of_turn(tokenizer, chat_template_kwargs: dict[str, Any]) -> str:
    """The text with which the chat template ends the assistant's turn."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _CONTENT}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **chat_template_kwargs)
    return text.rpartition(_CONTENT)[2].rstrip() if _CONTENT in text else tokenizer.eos_token
