"""A row of labelled steps, and the checks of the values of its columns, for every form of dataset."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple


WRONG_TYPE = "a value of the wrong type"
NOT_REPEATED = "a label text that differs from its input text"
NOT_ALIGNED = "different numbers of labels and token ids"
NO_TURNS = "a conversation that does not alternate between a step and its label"
BROKEN_QUESTION = "a question that its labeller reported as broken"
RATING_GAP = "a rated step after a step without a rating"
OUTSIDE = "a first error outside the solution"
READING_REMEDY = {
    NOT_ALIGNED: "Give one label per token, and -100 where no step ends.",
    WRONG_TYPE: "Convert the column with dataset.map or dataset.cast_column, or drop the row.",
    NOT_REPEATED: "Fix or drop the row.",
    NO_TURNS: "Give one user message per step, each followed by an assistant message '+' or '-'.",
    BROKEN_QUESTION: "Drop the row.",
    RATING_GAP: "Rate the step, or end the solution before it.",
    OUTSIDE: "Count steps from 0, and give -1 if every step is right.",
}


class Row(NamedTuple):
    """
    A row of a dataset.

    `stds` are the standard deviations of the labels, if they were requested. A row of token ids has `input_ids`, and
    its `steps` are the positions of its labels. A row that cannot be read has only `problem`, the reason, and
    `detail`, its place in the row.
    """

    prompt: str = ""
    steps: Sequence[str] | Sequence[int] = ()
    labels: Sequence[float] = ()
    stds: Sequence[float] | None = None
    input_ids: Sequence[int] | None = None
    problem: str = ""
    detail: str = ""


class Unreadable(Exception):
    """A row cannot be read. `args` are the problem and its place in the row."""


def text(row: Mapping[str, Any], column: str) -> str:
    """The text in a column. Raises [`Unreadable`] for another value."""
    if not isinstance(row.get(column), str):
        raise Unreadable(WRONG_TYPE, f"column '{column}': got {shown(row.get(column))}, expected a text")
    return row[column]


def texts(row: Mapping[str, Any], column: str) -> list[str]:
    """The list of texts in a column. A missing text is read as an empty text, which the encoder reports."""
    values = listed(row, column, "a list of texts", lambda step: step is None or isinstance(step, str))
    return [value or "" for value in values]


def number(row: Mapping[str, Any], column: str) -> float:
    """The number in a column. A missing number is read as NaN, which the encoder reports."""
    value = row.get(column)
    if value is not None and not isinstance(value, Number):
        raise Unreadable(WRONG_TYPE, f"column '{column}': got {shown(value)}, expected a number")
    return math.nan if value is None else float(value)


def numbers(row: Mapping[str, Any], column: str) -> list[float]:
    """The list of numbers in a column. A missing number is read as NaN, which the encoder reports."""
    values = listed(row, column, "a list of numbers", lambda value: value is None or isinstance(value, Number))
    return [math.nan if value is None else float(value) for value in values]


def listed(row: Mapping[str, Any], column: str, expected: str, fits: Callable[[Any], bool]) -> list:
    """The list in a column, whose values must fit. Raises [`Unreadable`] for another value."""
    values = [] if row.get(column) is None else row[column]
    if not isinstance(values, list):
        hint = "; .csv and .tsv files cannot hold lists, .jsonl files can" if isinstance(values, str) else ""
        raise Unreadable(WRONG_TYPE, f"column '{column}': got {shown(values)}, expected {expected}{hint}")
    for index, value in enumerate(values):
        if not fits(value):
            raise Unreadable(WRONG_TYPE, f"column '{column}', step {index}: got {shown(value)} in {expected}")
    return values


def shown(value: Any) -> str:
    """A value and its type, for errors."""
    return f"{repr(value)[:60]} ({type(value).__name__})"
