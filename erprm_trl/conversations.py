"""Turns a conversation with tools into steps: the text of each assistant turn, as a reward model reads it.

Training data and reward functions must use the same text, so both take it from here.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from .reasoning import THINK_CLOSE, THINK_OPEN, answer_start
from .steps import whole_characters


# Fields of a message where the response parsers of transformers store the thinking.
THINKING = ("reasoning_content", "thinking", "reasoning")
# A turn could otherwise write a tool's result, or a user's message, that the reward model would take for a real one.
_MARKS = re.compile(r"<(?=/?(?:tool_response|user|system|developer)>)")


def is_turn(message: dict[str, Any]) -> bool:
    """Whether a message is an assistant turn. A message without a role is one."""
    return message.get("role", "assistant") == "assistant"


def message_text(message: dict[str, Any]) -> str:
    """The text of a message's content, which is a text or a list of parts. Images have no text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part.get("text") or "") for part in content)
    return "" if content is None else str(content)


def question_text(prompt: "str | list[dict[str, Any]]") -> str:
    """The question of a prompt: the prompt itself, or the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return message_text(asked[-1]) if asked else ""


def observed_question(question: str | None, prompt: "str | list[dict[str, Any]]") -> str:
    """The question of a policy with an environment, whose `reset` may have appended text to the prompt: the text of
    the prompt from the bare question on, or the whole text if it does not contain the bare question."""
    text = question_text(prompt)
    return text[max(0, text.find(question)) :] if question else text


def message_thinking(message: dict[str, Any]) -> str:
    """The thinking that a response parser has moved to a separate field of the message."""
    return next((str(message[name]) for name in THINKING if message.get(name)), "")


def conversation_steps(
    messages: Sequence[dict[str, Any]],
    *,
    steps_of: str = "both",
    is_thinking: bool = False,
    render: Callable[[dict[str, Any]], str] | None = None,
) -> list[str]:
    r"""
    Splits a conversation into steps. A step is an assistant turn.

    The text of a step is what the turn adds to the conversation: the messages since the turn before it (results of
    tools), the content of the turn, and its tool calls. Messages after the last turn are not part of a step.

    Args:
        messages (`Sequence[dict[str, Any]]`):
            The messages after the question, as in the completions of TRL's trainers.
        steps_of (`str`, *optional*, defaults to `"both"`):
            With `"answer"`, the thinking of a turn is left out. See [`~erprm_trl.rollouts.split_steps`].
        is_thinking (`bool`, *optional*, defaults to `False`):
            Whether turns begin inside `<think>`, because the chat template ends with it.
        render (`Callable`, *optional*):
            Function that returns the text of a message. Defaults to [`render_message`].

    Returns:
        `list[str]`: one text per assistant turn, empty for a turn without content and tool calls.

    Example:

    ```python
    >>> call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 6, "b": 7}}}
    >>> messages = [
    ...     {"role": "assistant", "content": "I multiply.", "tool_calls": [call]},
    ...     {"role": "tool", "name": "multiply", "content": "42"},
    ...     {"role": "assistant", "content": "The answer is 42."},
    ... ]
    >>> conversation_steps(messages)
    ['I multiply.\n<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>',
     '<tool_response>\n42\n</tool_response>\nThe answer is 42.']
    ```
    """
    steps: list[str] = []
    parts: list[str] = []
    for message in messages:
        if render is not None:
            parts.append(render(message))
        else:
            parts.append(render_message(message, steps_of=steps_of, is_thinking=is_thinking))
        if is_turn(message):
            steps.append(whole_characters("\n".join(part for part in parts if part)).strip())
            parts = []
    return steps


def render_message(message: dict[str, Any], *, steps_of: str = "both", is_thinking: bool = False) -> str:
    """
    The text of a message as a reward model reads it.

    An assistant turn is its content, and then each tool call as JSON between `<tool_call>` and `</tool_call>`. A
    tool's result is between `<tool_response>` and `</tool_response>`, and any other message between tags with its
    role. If the message itself contains such a tag, `<` is replaced by `&lt;`, so that no turn can pretend to be a
    tool. Tags of tool calls are kept, because a malformed call stays in the content.

    Args:
        message (`dict[str, Any]`):
            A message with `content`, and optionally `role`, `tool_calls` and the thinking in a separate field.
        steps_of, is_thinking (*optional*):
            See [`conversation_steps`].
    """
    text = message_text(message)
    if not is_turn(message):
        tag = "tool_response" if message["role"] == "tool" else message["role"]
        return f"<{tag}>\n{_without_marks(text)}\n</{tag}>"
    thinking = message_thinking(message)
    if steps_of != "answer":
        opened = is_thinking and THINK_OPEN not in text
        text = f"{THINK_OPEN}{thinking}{THINK_CLOSE}{text}" if thinking else THINK_OPEN * opened + text
    elif not thinking:
        start = answer_start(text, is_thinking or None)
        text = "" if start is None else text[start:]
    calls = [f"<tool_call>\n{_call_json(call)}\n</tool_call>" for call in message.get("tool_calls") or []]
    return _without_marks("\n".join([text.strip(), *calls] if text.strip() else calls))


def _call_json(call: Any) -> str:
    """A tool call as JSON. Its arguments may be an object, or a JSON text as in OpenAI's format."""
    function = call.get("function") or call if isinstance(call, dict) else call
    if not isinstance(function, dict):
        return json.dumps(function, ensure_ascii=False, default=str)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # malformed arguments are shown as the text that the policy wrote
    return json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False, default=str)


def _without_marks(text: str) -> str:
    return _MARKS.sub("&lt;", text)
