"""Reads rows of the dataset forms that process reward models are trained on.

A row that cannot be read gets a reason instead of an error, so that a caller may skip it. Whether labels fit their
steps is checked later.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .dataset_rows import (
    NOT_ALIGNED,
    NOT_REPEATED,
    READING_REMEDY,
    Row,
    Unreadable,
    listed,
    number,
    numbers,
    text,
    texts,
)
from .published_forms import (
    SIGNS,
    rated_solutions,
    read_conversation,
    read_first_error,
    read_ratings,
    read_step_rewards,
    separate_question,
)


logger = logging.getLogger(__name__)

FORMS = {
    "stepwise": ("completions", "labels"),
    "outcome": ("completions", "label"),
    "math_shepherd": ("input", "label"),
    "er_prm": ("text", "value"),
    "openrlhf": ("input", "value"),
    "token ids": ("input_ids", "labels"),
    "rlhflow": ("conversations", "conversations"),
    "processbench": ("steps", "label"),
    "prm800k": ("label", "label"),
    "skywork": ("response", "step_rewards"),
}
"""Columns of the steps and of the labels, by form."""

TEXT_FORMS = ("math_shepherd", "er_prm", "openrlhf")  # one text of the question and all steps

_QUESTION = {
    "outcome": "prompt",
    "processbench": "problem",
    "prm800k": "question",
    "skywork": "problem",
}  # needed to recognise a form
NO_LABEL = -100  # label of a token that does not end a step
TEXT_SEPARATOR = "ки"  # follows each step in the published texts of Math-Shepherd and of the paper


def find_form(columns: Sequence[str]) -> str:
    """
    Returns the name of the form that a dataset with these columns has.

    Raises:
        `ValueError`: if the columns fit no form.
    """
    needed = {form: dict.fromkeys((*([_QUESTION[form]] if form in _QUESTION else []), *FORMS[form])) for form in FORMS}
    form = next((form for form in FORMS if set(columns).issuperset(needed[form])), None)
    if form is None:
        known = "; ".join(" and ".join(f"'{column}'" for column in names) for names in needed.values())
        raise ValueError(
            f"Dataset: got columns {sorted(columns)}, expected one of these sets: {known}. Rename columns with "
            "dataset.rename_columns."
        )
    return form


def to_stepwise(dataset, *, neutral: float = 1.0, alternatives: bool = False, invalid_rows: str = "error"):
    """
    Converts a dataset to TRL's stepwise form `{"prompt", "completions", "labels"}`.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            A dataset in one of these forms:

            - TRL's stepwise form: `prompt`, `completions` (list of steps) and `labels` (list of booleans or floats,
              one per step).
            - Math-Shepherd's form: `input` (question and steps, with `ки` after each step) and `label` (the same text
              with `+` or `-` in place of `ки`).
            - The paper's form: `text` (like `input`) and `value` (list of floats, one per step).
            - OpenRLHF's form: `input`, and `value` or `label` as a list with `"+"`, `"-"` or a float per step.
            - RLHFlow's form: `conversations`, where the user gives one step per message, the first one after the
              question, and the assistant answers `+` or `-`.
            - ProcessBench's form: `problem`, `steps` and `label` (index of the first wrong step, or -1). The steps
              after the first wrong step were not judged, and are left out.
            - PRM800K's form, phases 1 and 2: `question` and `label` as published.
            - The names of Skywork's inference code: `problem`, `response` (one step per line) and `step_rewards`.

            In texts and conversations the question ends where `Step 1:` begins. Conversations may have the question in
            a column `prompt`, `question` or `problem` too. Without both, there are only steps and no question. `.csv`
            and `.tsv` files can hold only Math-Shepherd's form.
        neutral (`float`, *optional*, defaults to `1.0`):
            Label of PRM800K's steps that were rated 0, which are neither wrong nor helpful.
        alternatives (`bool`, *optional*, defaults to `False`):
            Whether PRM800K's rated completions that were not chosen give solutions too. Each ends with its
            alternative.
        invalid_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` raises an error at the first row that cannot be read. `"drop"` leaves such rows out, and counts
            and logs them. A PRM800K solution to a question that was reported as broken is such a row.

    Returns:
        The dataset in the stepwise form, of the same type. A dataset in this form is returned unchanged. Labels that
        do not match the number of steps are kept, and the encoder reports them.

    Raises:
        `ValueError`: if the columns have no known form or hold token ids, if no row is left, or, with
            `invalid_rows="error"`, if a value has the wrong type or a row contradicts its form.
    """
    from datasets import IterableDataset

    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows: got {invalid_rows!r}, expected 'error' or 'drop'. Choose one.")
    if not 0 <= neutral <= 1:
        raise ValueError(f"neutral: got {neutral}, expected a label in [0, 1]. Choose e.g. 1.0, 0.5 or 0.0.")
    is_stream = isinstance(dataset, IterableDataset)
    # A stream does not know its columns after `map`, so they are read from its first row.
    columns = list(next(iter(dataset), {})) if is_stream else dataset.column_names
    form = find_form(columns)
    if form == "stepwise":
        return dataset
    if form == "outcome":
        raise ValueError(
            "to_stepwise: got columns 'completions' and 'label', one label per solution, expected labels of steps. "
            "Pass the dataset to ERPRMTrainer, which trains on the last step of each solution."
        )
    if form == "token ids":
        raise ValueError(
            "to_stepwise: got columns 'input_ids' and 'labels', expected texts. Pass the dataset to ERPRMTrainer, "
            "which reads token ids directly."
        )

    def read(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows: list[Row] = []
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            row = dict(zip(batch, values, strict=True))
            solutions = _solutions(row, form, neutral, alternatives)
            if solutions[0].problem and invalid_rows == "error":
                raise ValueError(f"Row {index}, {solutions[0].detail}. {READING_REMEDY[solutions[0].problem]}")
            rows += solutions
        dropped = Counter(row.problem for row in rows if row.problem)
        if dropped:
            logger.warning(
                "%d rows from row %d on: %d are left out: %s.",
                len(indices),
                indices[0],
                dropped.total(),
                dict(dropped),
            )
        rows = [row for row in rows if not row.problem]
        return {
            "prompt": [row.prompt for row in rows],
            "completions": [list(row.steps) for row in rows],
            "labels": [list(row.labels) for row in rows],
        }

    shown = {} if is_stream else {"desc": "Reading steps"}
    stepwise = dataset.with_format(None).map(read, batched=True, with_indices=True, remove_columns=columns, **shown)
    if not is_stream and len(dataset) and not len(stepwise):
        raise ValueError(
            f"Dataset: all {len(dataset)} rows are left out, expected at least one that can be read. "
            "Set invalid_rows='error' to see the reason of the first row."
        )
    return stepwise


def _solutions(row: Mapping[str, Any], form: str, neutral: float, alternatives: bool) -> list[Row]:
    """The labelled solutions in a row. Only PRM800K has several."""
    if form != "prm800k":
        return [read_row(row, form)]
    try:
        return rated_solutions(row, neutral, alternatives)
    except Unreadable as error:
        problem, detail = error.args
        return [Row(problem=problem, detail=detail)]


def read_row(row: Mapping[str, Any], form: str, with_stds: bool = False) -> Row:
    """Reads a row of a dataset in this form, and its column `label_std` if `with_stds` is true."""
    try:
        return _READERS[form](row)._replace(stds=numbers(row, "label_std") if with_stds else None)
    except Unreadable as error:
        problem, detail = error.args
        return Row(problem=problem, detail=detail)


def _read_stepwise(row: Mapping[str, Any]) -> Row:
    return Row(text(row, "prompt"), texts(row, "completions"), numbers(row, "labels"))


def _read_outcome(row: Mapping[str, Any]) -> Row:
    # Only the last step's label is used.
    steps = texts(row, "completions")
    return Row(text(row, "prompt"), steps, [number(row, "label")] * len(steps))


def _read_math_shepherd(row: Mapping[str, Any]) -> Row:
    if isinstance(row.get("label"), list):
        return _read_openrlhf(row, "label")
    pieces, marked = text(row, "input").split(TEXT_SEPARATOR), text(row, "label")
    labels, position = [], 0
    for index, piece in enumerate(pieces):
        end = position + len(piece)
        mark = marked[end : end + 1]
        is_last = index == len(pieces) - 1
        if marked[position:end] != piece or mark not in (("",) if is_last else ("+", "-")):
            raise Unreadable(
                NOT_REPEATED,
                f"column 'label': does not repeat 'input' with + or - in place of each {TEXT_SEPARATOR} (at character "
                f"{position}: {marked[position : end + 1][-60:]!r})",
            )
        if not is_last:
            labels.append(float(mark == "+"))
        position = end + 1
    return _read_steps(pieces, labels)


def _read_er_prm(row: Mapping[str, Any]) -> Row:
    return _read_steps(text(row, "text").split(TEXT_SEPARATOR), numbers(row, "value"))


def _read_openrlhf(row: Mapping[str, Any], column: str = "value") -> Row:
    pieces = text(row, "input").split(TEXT_SEPARATOR)
    if all(sign in SIGNS for sign in row.get(column) or [None]):
        return _read_steps(pieces, [SIGNS[sign] for sign in row[column]])
    return _read_steps(pieces, numbers(row, column))


def _read_steps(pieces: list[str], labels: list[float]) -> Row:
    return Row(*separate_question(pieces[:-1]), labels)  # the text after the last separator has no label


def _read_token_ids(row: Mapping[str, Any]) -> Row:
    # The form of TRL's PRMTrainer: a label at the last token of each step, and -100 at all other tokens.
    input_ids = listed(row, "input_ids", "a list of token ids", lambda value: type(value) is int and value >= 0)
    labels = numbers(row, "labels")
    if len(labels) != len(input_ids):
        raise Unreadable(
            NOT_ALIGNED,
            f"column 'labels' has {len(labels)} values for {len(input_ids)} token ids in column 'input_ids'",
        )
    mask = row.get("attention_mask")
    if mask is not None:
        if len(mask) != len(input_ids):
            raise Unreadable(
                NOT_ALIGNED,
                f"column 'attention_mask' has {len(mask)} values for {len(input_ids)} token ids in 'input_ids'",
            )
        input_ids = [token for token, is_text in zip(input_ids, mask, strict=True) if is_text]
        labels = [label for label, is_text in zip(labels, mask, strict=True) if is_text]
    positions = [position for position, label in enumerate(labels) if label != NO_LABEL]
    return Row(steps=positions, labels=[labels[position] for position in positions], input_ids=input_ids)


_READERS = {
    "stepwise": _read_stepwise,
    "outcome": _read_outcome,
    "math_shepherd": _read_math_shepherd,
    "er_prm": _read_er_prm,
    "openrlhf": _read_openrlhf,
    "token ids": _read_token_ids,
    "rlhflow": read_conversation,
    "processbench": read_first_error,
    "prm800k": read_ratings,
    "skywork": read_step_rewards,
}
