"""Finds the thinking and the answer in a completion by their delimiters.

Reasoning models write `<think> ... </think>` before their answer, and some put the answer between `<answer>` and
`</answer>`. Only the answer is graded. Steps can be split in both parts.
"""

from typing import Literal


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

StepsOf = Literal["both", "thinking", "answer"]
STEPS_OF: tuple[StepsOf, ...] = ("both", "thinking", "answer")


def answer_start(text: str, reasoning: bool | None = None) -> int | None:
    """
    Finds where the answer begins.

    Args:
        text (`str`):
            A completion, or a prefix of one.
        reasoning (`bool`, *optional*):
            How to treat the delimiters. `None` looks for them in the text. `True` also counts a text without any
            delimiter as thinking, because with chat templates that end with `<think>`, completions do not contain the
            opening delimiter. `False` treats the delimiters as ordinary text.

    Returns:
        `int` or `None`: the index after the last `</think>`, 0 for a text without thinking, or `None` if the thinking
        is not closed, so that there is no answer.
    """
    if reasoning is False:
        return 0
    opened, closed = text.rfind(THINK_OPEN), text.rfind(THINK_CLOSE)
    if closed > opened:
        return closed + len(THINK_CLOSE)
    return None if reasoning or opened >= 0 else 0


def graded_text(text: str, reasoning: bool | None = None) -> str | None:
    """
    Returns the part of a completion that is graded: the text after the thinking, or the last `<answer>` in it.

    Args:
        text (`str`):
            A complete completion.
        reasoning (`bool`, *optional*):
            See [`answer_start`].

    Returns:
        `str` or `None`: the graded text, or `None` if the thinking is not closed.
    """
    start = answer_start(text, reasoning)
    if start is None:
        return None
    answer = text[start:]
    if reasoning is False or ANSWER_OPEN not in answer:
        return answer
    return answer[answer.rindex(ANSWER_OPEN) + len(ANSWER_OPEN) :].partition(ANSWER_CLOSE)[0]


def prompt_opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends with `<think>`, so that completions begin with thinking."""
    return prompt.rstrip().endswith(THINK_OPEN)
