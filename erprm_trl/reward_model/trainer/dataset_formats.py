"""Reads rows of the dataset forms that process reward models are trained on.

A row that cannot be read gets a reason instead of an error, so that a caller may skip it. Whether labels fit their
steps is checked later.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple


FORMS = {
    "stepwise": ("completions", "labels"),
    "marked text": ("input", "label"),
    "valued text": ("text", "value"),
    "token ids": ("input_ids", "labels"),
}
NO_LABEL = -100  # label of a token that does not end a step
TEXT_SEPARATOR = "ки"  # follows each step in the published texts of Math-Shepherd and of the paper
_FIRST_STEP = re.compile(r"\s*(?=Step 1\s*:)")

WRONG_TYPE = "a value of the wrong type"
NOT_REPEATED = "a label text that differs from its input text"
NOT_ALIGNED = "different numbers of labels and token ids"
READING_REMEDY = {
    NOT_ALIGNED: "Give one label per token, and -100 where no step ends.",
    WRONG_TYPE: "Convert the column with dataset.map or dataset.cast_column, or drop the row.",
    NOT_REPEATED: "Fix or drop the row.",
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


class _Unreadable(Exception):
    """A row cannot be read. `args` are the problem and its place in the row."""


def find_form(columns: Sequence[str]) -> str:
    """
    Returns the name of the form that a dataset with these columns has.

    Raises:
        `ValueError`: if the columns fit no form.
    """
    form = next((name for name, needed in FORMS.items() if set(columns).issuperset(needed)), None)
    if form is None:
        known = "; ".join(" and ".join(f"'{column}'" for column in needed) for needed in FORMS.values())
        raise ValueError(
            f"Dataset: got columns {sorted(columns)}, expected one of these pairs: {known}. Rename columns with "
            "dataset.rename_columns."
        )
    return form


def to_stepwise(dataset):
    """
    Converts a dataset to TRL's stepwise form `{"prompt", "completions", "labels"}`.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            A dataset in one of three forms:

            - TRL's stepwise form: `prompt`, `completions` (list of steps) and `labels` (list of booleans or floats,
              one per step).
            - Math-Shepherd's form: `input` (question and steps, with `ки` after each step) and `label` (the same text
              with `+` or `-` in place of `ки`).
            - The paper's form: `text` (like `input`) and `value` (list of floats, one per step).

            In the last two forms the question ends where `Step 1:` begins. A text without `Step 1:` has only steps and
            no question. Of these forms, `.csv` and `.tsv` files can hold only Math-Shepherd's.

    Returns:
        The dataset in the stepwise form, of the same type. A dataset in this form is returned unchanged. Labels that
        do not match the number of steps are kept, and the encoder reports them.

    Raises:
        `ValueError`: if the columns have no known form or hold token ids, if a value has the wrong type, or if a
            `label` does not repeat its `input`.
    """
    from datasets import IterableDataset

    is_stream = isinstance(dataset, IterableDataset)
    # A stream does not know its columns after `map`, so they are read from its first row.
    columns = list(next(iter(dataset), {})) if is_stream else dataset.column_names
    form = find_form(columns)
    if form == "stepwise":
        return dataset
    if form == "token ids":
        raise ValueError(
            "to_stepwise: got columns 'input_ids' and 'labels', expected texts. Pass the dataset to ERPRMTrainer, "
            "which reads token ids directly."
        )

    def read(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        parsed = read_row(row, form)
        if parsed.problem:
            raise ValueError(f"Row {index}, {parsed.detail}. {READING_REMEDY[parsed.problem]}")
        return {"prompt": parsed.prompt, "completions": parsed.steps, "labels": parsed.labels}

    shown = {} if is_stream else {"desc": "Reading steps"}
    return dataset.with_format(None).map(read, with_indices=True, remove_columns=columns, **shown)


def read_row(row: Mapping[str, Any], form: str, with_stds: bool = False) -> Row:
    """Reads a row of a dataset in this form, and its column `label_std` if `with_stds` is true."""
    try:
        return _READERS[form](row)._replace(stds=_numbers(row, "label_std") if with_stds else None)
    except _Unreadable as error:
        problem, detail = error.args
        return Row(problem=problem, detail=detail)


def _read_stepwise(row: Mapping[str, Any]) -> Row:
    # A missing step is read as an empty step, which the encoder reports.
    steps = _list(row, "completions", "a list of texts", lambda step: step is None or isinstance(step, str))
    return Row(_text(row, "prompt"), [step or "" for step in steps], _numbers(row, "labels"))


def _read_marked_text(row: Mapping[str, Any]) -> Row:
    pieces, marked = _text(row, "input").split(TEXT_SEPARATOR), _text(row, "label")
    labels, position = [], 0
    for index, piece in enumerate(pieces):
        end = position + len(piece)
        mark = marked[end : end + 1]
        is_last = index == len(pieces) - 1
        if marked[position:end] != piece or mark not in (("",) if is_last else ("+", "-")):
            raise _Unreadable(
                NOT_REPEATED,
                f"column 'label': does not repeat 'input' with + or - in place of each {TEXT_SEPARATOR} (at character "
                f"{position}: {marked[position : end + 1][-60:]!r})",
            )
        if not is_last:
            labels.append(float(mark == "+"))
        position = end + 1
    return _read_steps(pieces, labels)


def _read_valued_text(row: Mapping[str, Any]) -> Row:
    return _read_steps(_text(row, "text").split(TEXT_SEPARATOR), _numbers(row, "value"))


def _read_steps(pieces: list[str], labels: list[float]) -> Row:
    # The text after the last separator has no label.
    steps = pieces[:-1]
    question = ""
    if steps and (first_step := _FIRST_STEP.search(steps[0])):
        question, steps = steps[0][: first_step.start()], [steps[0][first_step.end() :], *steps[1:]]
    return Row(question.strip(), [step.strip() for step in steps], labels)


def _read_token_ids(row: Mapping[str, Any]) -> Row:
    # The form of TRL's PRMTrainer: a label at the last token of each step, and -100 at all other tokens.
    input_ids = _list(row, "input_ids", "a list of token ids", lambda value: type(value) is int and value >= 0)
    labels = _numbers(row, "labels")
    if len(labels) != len(input_ids):
        raise _Unreadable(
            NOT_ALIGNED,
            f"column 'labels' has {len(labels)} values for {len(input_ids)} token ids in column 'input_ids'",
        )
    mask = row.get("attention_mask")
    if mask is not None:
        if len(mask) != len(input_ids):
            raise _Unreadable(
                NOT_ALIGNED,
                f"column 'attention_mask' has {len(mask)} values for {len(input_ids)} token ids in 'input_ids'",
            )
        input_ids = [token for token, is_text in zip(input_ids, mask, strict=True) if is_text]
        labels = [label for label, is_text in zip(labels, mask, strict=True) if is_text]
    positions = [position for position, label in enumerate(labels) if label != NO_LABEL]
    return Row(steps=positions, labels=[labels[position] for position in positions], input_ids=input_ids)


_READERS = {
    "stepwise": _read_stepwise,
    "marked text": _read_marked_text,
    "valued text": _read_valued_text,
    "token ids": _read_token_ids,
}


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise _Unreadable(WRONG_TYPE, f"column '{column}': got {_shown(row[column])}, expected a text")
    return row[column]


def _numbers(row: Mapping[str, Any], column: str) -> list[float]:
    # A missing number is read as NaN, which the encoder reports.
    values = _list(row, column, "a list of numbers", lambda value: value is None or isinstance(value, Number))
    return [math.nan if value is None else float(value) for value in values]


def _list(row: Mapping[str, Any], column: str, expected: str, fits: Callable[[Any], bool]) -> list:
    values = [] if row[column] is None else row[column]
    if not isinstance(values, list):
        hint = "; .csv and .tsv files cannot hold lists, .jsonl files can" if isinstance(values, str) else ""
        raise _Unreadable(WRONG_TYPE, f"column '{column}': got {_shown(values)}, expected {expected}{hint}")
    for index, value in enumerate(values):
        if not fits(value):
            raise _Unreadable(WRONG_TYPE, f"column '{column}', step {index}: got {_shown(value)} in {expected}")
    return values


def _shown(value: Any) -> str:
    return f"{repr(value)[:60]} ({type(value).__name__})"
