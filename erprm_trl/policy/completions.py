"""Reads the prompts and completions of TRL's trainers, which are texts or conversations: the question, the answer, the
thinking (in `<think>...</think>` or in a separate field), and the steps."""

from itertools import accumulate
from typing import Any

from ..conversations import is_turn, message_text, message_thinking
from ..reasoning import THINK_CLOSE, THINK_OPEN, prompt_opens_thinking
from ..reward_model.prm_format import PRMFormat
from ..steps import clean_steps, split_steps
from .step_alignment import step_token_ends


# Arguments that TRL passes to a reward function in addition to the dataset's columns.
NO_COLUMNS = {"completion_ids", "trainer_state", "log_extra", "log_metric", "environments", "tool_mask"}


def completion_text(completion: "str | list[dict[str, Any]]") -> str:
    """The text of the policy's answer: the completion itself, or the last message of a conversation. It is empty if
    the last message is not from the policy, for example the result of a tool."""
    message = _last_message(completion)
    return message if isinstance(message, str) else message_text(message)


def opens_thinking(prompt: "str | list[dict[str, Any]]", tokenizer=None, chat_template_kwargs=None) -> bool:
    """
    Whether completions of a prompt begin inside `<think>`, because the prompt or the chat template ends with it.

    Args:
        prompt (`str` or `list[dict[str, Any]]`):
            Prompt, as a text or a conversation.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. Its chat template is applied to conversations. Without it, the result is `False`
            for conversations.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template.
    """
    if isinstance(prompt, str):
        return prompt_opens_thinking(prompt)
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or THINK_OPEN not in template:
        return False
    settings = {"tokenize": False, "add_generation_prompt": True, **(chat_template_kwargs or {})}
    return prompt_opens_thinking(tokenizer.apply_chat_template(prompt, **settings))


def completion_steps(
    completion: "str | list[dict[str, Any]]",
    prm_format: PRMFormat,
    *,
    is_thinking: bool = False,
    tokenizer=None,
    token_ids: list[int] | None = None,
) -> tuple[list[str], list[int] | None]:
    """
    Splits a completion into steps.

    Args:
        completion (`str` or `list[dict[str, Any]]`):
            Completion, as a text or a conversation. Only the last message of a conversation is read. Thinking that a
            response parser has moved to a separate field is read as if it were in the text.
        prm_format ([`PRMFormat`]):
            The reward model's format.
        is_thinking (`bool`, *optional*, defaults to `False`):
            Whether the completion begins inside `<think>`, see [`opens_thinking`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer.
        token_ids (`list[int]`, *optional*):
            The policy's tokens of the completion.

    Returns:
        `tuple[list[str], list[int] | None]`: the text of each step, and the index of each step's last token from
        [`step_token_ends`]. The indices are empty without `tokenizer` and `token_ids`.
    """
    message = _last_message(completion)
    text = completion_text(completion)
    thinking = message_thinking(message) if isinstance(message, dict) else ""
    if thinking and prm_format.steps_of == "answer":
        is_thinking = False  # the parser has moved the thinking out of the text
    elif thinking and tokenizer is not None and token_ids is not None and len(completion) == 1:
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
    elif thinking:
        text = f"{THINK_OPEN}{thinking}{THINK_CLOSE}{text}"
    opening = THINK_OPEN if is_thinking and THINK_OPEN not in text and THINK_CLOSE not in text else ""
    pieces = split_steps(opening + text, prm_format.splitter, prm_format.steps_of)
    steps = clean_steps(pieces, prm_format.splitter)
    if tokenizer is None or token_ids is None:
        return steps, []
    ends = [end - len(opening) for end in accumulate(map(len, pieces))]
    return steps, step_token_ends(tokenizer, token_ids, text, ends)


def _last_message(completion: "str | list[dict[str, Any]]") -> "str | dict[str, Any]":
    if isinstance(completion, str):
        return completion
    return completion[-1] if completion and is_turn(completion[-1]) else ""
