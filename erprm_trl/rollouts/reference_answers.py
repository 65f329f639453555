"""Reads a reference answer from the value of a column, for questions and for rewards: text, numbers, and messages."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Number
from typing import Any


def reference_text(value: Any, place: str) -> str | None:
    """
    Reads a reference answer.

    Args:
        value (`Any`):
            A text; a number, which is written without an exponent or trailing zeros (18.0 is `18`); or a conversation
            of one message, whose content is the answer. Scalars of NumPy and torch are numbers.
        place (`str`):
            Where the value stands, such as `"answer[3]"`, for errors.

    Returns:
        `str` or `None`: The answer as text, `None` where it is missing: for `None`, NaN, and blank text.

    Raises:
        `ValueError`: if the value is something else, such as a list of answers, or text that is not Unicode.
    """
    answer = _content(value)
    if not isinstance(answer, Number) and getattr(answer, "shape", None) == ():  # a tensor
        answer = answer.item()
    if answer is None or type(answer).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(answer, Number):
        return None if answer != answer else _spelled(answer)
    if isinstance(answer, str) and not answer.strip():
        return None
    if not is_text(answer):
        raise ValueError(
            f"{place} holds no reference answer (got {str(value)[:80]!r}, {type(value).__name__}, expected a text or "
            "a number). Write it as one text, e.g. with `dataset.map`, or name another column."
        )
    return answer


def is_text(value: Any) -> bool:
    """Whether a value is text with something in it that every tokenizer takes: JSON can say half of a character."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _content(value: Any) -> Any:
    # TRL's conversational form: `[{"role": "assistant", "content": "18"}]`.
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    return message["content"] if isinstance(message, Mapping) and isinstance(message.get("content"), str) else value


def _spelled(value: Number) -> str:
    """A number without an exponent or trailing zeros."""
    text = str(value)
    if isinstance(value, bool) or not any(sign in text for sign in ".eE"):
        return text
    try:
        digits = format(Decimal(text), "f")
    except ArithmeticError:  # a complex number, say
        return text
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits
