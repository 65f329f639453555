"""Checks arguments that must be lists of texts. Without these checks, a single string would be read letter by letter,
because a Python string is a sequence of characters."""

from typing import Any


def check_texts(name: str, texts: Any) -> None:
    """
    Checks that an argument is a list of strings.

    Args:
        name (`str`):
            Name of the argument, for errors.
        texts (`Any`):
            Value of the argument.

    Raises:
        `TypeError`: for a single string, or if an item is not a string. The message names the argument and the row.
    """
    refuse_text(name, texts, "a list of strings")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"{name}[{row}]: got {type(text).__name__} {str(text)[:60]!r}, expected a string. Convert it, or drop "
                "this row."
            )


def check_text_lists(name: str, rows: Any) -> None:
    """
    Checks that an argument is a list of lists of strings.

    Args:
        name (`str`):
            Name of the argument, for errors.
        rows (`Any`):
            Value of the argument.

    Raises:
        `TypeError`: see [`check_texts`].
    """
    refuse_text(name, rows, "a list of lists of strings")
    for row, texts in enumerate(rows):
        check_texts(f"{name}[{row}]", texts)


def refuse_text(name: str, value: Any, expected: str) -> None:
    """
    Checks that an argument is iterable and not a single string. The type of its items is not checked.

    Args:
        name (`str`):
            Name of the argument, for errors.
        value (`Any`):
            Value of the argument.
        expected (`str`):
            Description of the expected value for the message, e.g. `"a list of folders"`.

    Raises:
        `TypeError`: for a single string, and for a value that is not iterable.
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(
            f"{name}: got the {type(value).__name__} {value[:60]!r}, expected {expected}. Put it into a list, or "
            "split it first."
        )
    if value is None or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: got {type(value).__name__} {str(value)[:60]!r}, expected {expected}. Pass a list.")
