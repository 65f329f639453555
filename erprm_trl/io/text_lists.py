"""Checks of arguments that are lists of texts. A string is a sequence of letters in Python: where a list of texts
belongs, it would be read letter by letter, without an error."""

from typing import Any


def check_texts(name: str, texts: Any) -> None:
    """
    Checks that an argument is a list of strings.

    Args:
        name (`str`):
            Name of the argument, for errors.
        texts (`Any`):
            Its value.

    Raises:
        `TypeError`: for a single string, or for a row that is not a string; the error names the argument and the row.
    """
    refuse_text(name, texts, "a list of strings")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{row}]: got {type(text).__name__} {str(text)[:60]!r}, expected a string.")


def check_text_lists(name: str, rows: Any) -> None:
    """Checks that an argument is a list of lists of strings; see [`check_texts`]."""
    refuse_text(name, rows, "a list of lists of strings")
    for row, texts in enumerate(rows):
        check_texts(f"{name}[{row}]", texts)


def refuse_text(name: str, value: Any, expected: str) -> None:
    """
    Checks that an argument is a list of anything.

    Args:
        name (`str`), value (`Any`):
            See [`check_texts`].
        expected (`str`):
            What the error says was expected, e.g. `"a list of folders"`.

    Raises:
        `TypeError`: for a single string, and for what is not a list.
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(
            f"{name}: got the {type(value).__name__} {value[:60]!r}, expected {expected}. Put it into a list, or "
            "split it first."
        )
    if value is None or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: got {type(value).__name__} {str(value)[:60]!r}, expected {expected}.")
