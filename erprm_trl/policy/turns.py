"""Splits the completions of policies with tools into assistant turns, and finds the tokens of each turn."""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

from ..conversations import conversation_steps, is_turn, render_message
from ..reward_model.prm_format import PRMFormat


ENVIRONMENT = "environment"


def has_turns(completion: "str | list[dict[str, Any]]") -> bool:
    """Whether a completion is a conversation with several messages, or a message that calls tools."""
    if isinstance(completion, str):
        return False
    return len(completion) > 1 or any(message.get("tool_calls") for message in completion)


def turn_ends(tool_mask: Sequence[int]) -> list[int]:
    """
    Finds the last token of each turn: the last position of each run of ones.

    Args:
        tool_mask (`Sequence[int]`):
            1 at each token that the policy wrote, and 0 at each token of a tool or environment, as in TRL.

    Returns:
        `list[int]`: the indices, increasing. A completion without tokens of the policy has none.
    """
    ends = [index for index, (own, after) in enumerate(pairwise(tool_mask)) if own and not after]
    return [*ends, len(tool_mask) - 1] if len(tool_mask) and tool_mask[-1] else ends


def turn_steps(
    completion: "str | list[dict[str, Any]]",
    prm_format: PRMFormat,
    *,
    is_thinking: bool = False,
    tokenizer=None,
    token_ids: list[int] | None = None,
    tool_mask: Sequence[int] | None = None,
    render: Callable[[dict[str, Any]], str] | None = None,
) -> tuple[list[str], list[int] | None]:
    """
    Splits a completion into assistant turns.

    The texts are the steps of [`~erprm_trl.rollouts.conversation_steps`]. A `rollout_func` returns tokens instead of
    messages. Then a turn is a run of tokens that the policy wrote, after the decoded tokens of the environment.

    Args:
        completion (`str` or `list[dict[str, Any]]`):
            Completion, as a text or a conversation.
        prm_format ([`PRMFormat`]):
            The reward model's format. Its `steps_of` decides whether thinking is left out.
        is_thinking (`bool`, *optional*, defaults to `False`):
            Whether turns begin inside `<think>`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer.
        token_ids (`list[int]`, *optional*):
            Tokens of the completion.
        tool_mask (`Sequence[int]`, *optional*):
            1 at each token that the policy wrote, and 0 at the others.
        render (`Callable`, *optional*):
            See [`~erprm_trl.rollouts.conversation_steps`].

    Returns:
        `tuple[list[str], list[int] | None]`: the text of each turn, and the index of its last token. The indices are
        empty if they are not known, because there are several turns and no `tool_mask`. They are `None` if the
        completion and the `tool_mask` have different numbers of turns and there is no tokenizer to decode them.
    """
    messages = [{"content": completion}] if isinstance(completion, str) else completion
    num_turns = sum(map(is_turn, messages))
    options = {"steps_of": prm_format.steps_of, "is_thinking": is_thinking}
    if tool_mask is None:
        ends = [len(token_ids) - 1] if token_ids and num_turns == len(messages) == 1 else []
        return conversation_steps(messages, **options, render=render), ends
    ends = turn_ends(tool_mask)
    if len(ends) == num_turns and (all(tool_mask) or num_turns < len(messages)):
        return conversation_steps(messages, **options, render=render), ends
    if tokenizer is None or token_ids is None:
        return conversation_steps(messages, **options, render=render), None

    def text(message):
        return message["content"] if message.get("role") == ENVIRONMENT else render_message(message, **options)

    return conversation_steps(_decoded(tokenizer, token_ids, tool_mask), render=render or text), ends


def num_own_tokens(
    completions: list, completion_ids: list[list[int]] | None, tool_masks: Sequence[Sequence[int]] | None
) -> list[int] | None:
    """Number of tokens of each completion that the policy wrote, or `None` if it is not known. TRL's own trainers do
    not pass a mask of the tokens that tools wrote."""
    if tool_masks is not None:
        return list(map(sum, tool_masks))
    return None if completion_ids is None or any(map(has_turns, completions)) else list(map(len, completion_ids))


def _decoded(tokenizer, token_ids: list[int], tool_mask: Sequence[int]) -> list[dict[str, Any]]:
    """One message for each run of tokens that the policy or the environment wrote."""
    messages = []
    for own, run in groupby(zip(token_ids, tool_mask, strict=True), lambda token: bool(token[1])):
        content = tokenizer.decode([token_id for token_id, _ in run], skip_special_tokens=True).strip()
        messages.append({"role": "assistant" if own else ENVIRONMENT, "content": content})
    return messages
