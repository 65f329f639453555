"""Reads reference answers from the values of a column: texts, numbers, or messages."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Number
from typing import Any


def reference_text(value: Any, place: str) -> str | None:
    """
    Converts the value of a column to a reference answer.

    Args:
        value (`Any`):
            A text, a number, or a conversation of one message, whose content is the answer. Numbers are written
            without an exponent and without trailing zeros (18.0 becomes `18`). They may be scalars of NumPy or torch.
        place (`str`):
            Place of the value, such as `"answer[3]"`, for errors.

    Returns:
        `str` or `None`: the answer as text, or `None` for a missing answer (`None`, NaN, or blank text).

    Raises:
        `ValueError`: if the value has another type, such as a list of answers, or is not Unicode text.
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
            "a number). Convert it to one text, e.g. with `dataset.map`, or choose another column."
        )
    return answer


def is_text(value: Any) -> bool:
    """Whether a value is non-blank text without lone surrogates. JSON may contain them, but tokenizers reject them."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _content(value: Any) -> Any:
    # TRL's conversational format is `[{"role": "assistant", "content": "18"}]`.
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    return message["content"] if isinstance(message, Mapping) and isinstance(message.get("content"), str) else value


def _spelled(value: Number) -> str:
    """A number without an exponent or trailing zeros."""
    text = str(value)
    if isinstance(value, bool) or not any(sign in text for sign in ".eE"):
        return text
    try:
        digits = format(Decimal(text), "f")
    except ArithmeticError:  # e.g. a complex number
        return text
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits
