"""Finds the reason why a row of labelled steps cannot be used, and its fix."""

import math
from collections.abc import Mapping

from .dataset_rows import READING_REMEDY, Row


NO_STEPS = "no steps"
EMPTY_STEP = "an empty step"
COUNT_MISMATCH = "different numbers of labels and steps"
BAD_LABEL = "a label that is NaN or outside [0, 1]"
BAD_STD = "a label_std that is missing, negative or not finite"
SEPARATOR_INSIDE = "the separator inside a step"
TOO_LONG = "no labelled step within max_length"
UNKNOWN_IDS = "token ids beyond the tokenizer's vocabulary"

REMEDY = {
    **READING_REMEDY,
    NO_STEPS: "Drop the row.",
    EMPTY_STEP: "Join it with the step before or after it.",
    COUNT_MISMATCH: "Give one label per step.",
    BAD_LABEL: "Labels are probabilities that a step is right. Rescale rewards to [0, 1].",
    BAD_STD: "Give one standard deviation per step, and 0 for an exact label.",
    SEPARATOR_INSIDE: "Choose a separator that no step contains, such as separator='<|step|>' with "
    "add_missing_tokens=True, split the step at the separator, or remove it from the end of the step.",
    UNKNOWN_IDS: "Prepare the dataset with the tokenizer of the model.",
    TOO_LONG: "Raise max_length, up to the model's context, or drop the row.",
}


def find_problem(
    row: Row, separator_inside: int | None, vocabulary: int, text_column: str, label_column: str
) -> tuple[str, str]:
    """
    Returns the first reason why a row cannot be used.

    Args:
        row ([`Row`]):
            The row.
        separator_inside (`int` or `None`):
            Index of the first step whose own text contains the separator.
        vocabulary (`int`):
            Size of the tokenizer's vocabulary.
        text_column (`str`):
            Name of the column with the steps, for the error message.
        label_column (`str`):
            Name of the column with the labels, for the error message.

    Returns:
        `tuple[str, str]`: the problem, a key of `REMEDY`, and its place in the row. Both are empty for a usable row.
    """
    steps, labels, stds = row.steps, row.labels, row.stds
    if row.problem:
        return row.problem, row.detail
    if not steps:
        return NO_STEPS, f"column '{text_column}'"
    if len(labels) != len(steps):
        return (
            COUNT_MISMATCH,
            f"column '{label_column}' has {len(labels)} labels for {len(steps)} steps in column '{text_column}'",
        )
    for index, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if isinstance(step, str) and not step.strip():
            return EMPTY_STEP, f"column '{text_column}', step {index}"
        if not 0 <= label <= 1:
            return BAD_LABEL, f"column '{label_column}', step {index}: {label}"
    if row.input_ids and max(row.input_ids) >= vocabulary:
        return UNKNOWN_IDS, f"column '{text_column}': id {max(row.input_ids)} for a vocabulary of {vocabulary} tokens"
    if stds is not None and (len(stds) != len(steps) or not all(0 <= std < math.inf for std in stds)):
        return BAD_STD, f"column 'label_std': {stds} for {len(steps)} steps"
    if separator_inside is not None:
        return SEPARATOR_INSIDE, f"column '{text_column}', step {separator_inside}: {steps[separator_inside][:60]!r}"
    return "", ""


def check_encoded_labels(dataset, name: str = "train") -> None:
    """
    Checks the labels of a dataset that was encoded before, because the loss does not check them.

    Args:
        dataset (`datasets.Dataset`):
            Dataset with the columns `step_positions` and `step_labels` of [`encode_examples`].
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in errors.

    Raises:
        `ValueError`: for the first row with different numbers of labels and positions, or with a label that is
            missing, NaN or outside [0, 1].
    """
    first_row = 0
    for batch in dataset.with_format(None).select_columns(["step_positions", "step_labels"]).iter(batch_size=1000):
        check_encoded_batch(batch, first_row, name)
        first_row += len(batch["step_labels"])


def check_encoded_batch(batch: Mapping[str, list], first_row: int, name: str) -> None:
    """Checks consecutive rows like [`check_encoded_labels`]. `first_row` is the index of the first of them."""
    rows = zip(batch["step_positions"], batch["step_labels"], strict=True)
    for row, (positions, labels) in enumerate(rows, start=first_row):
        if len(positions) != len(labels):
            raise unusable_row(row, name, COUNT_MISMATCH, f"{len(labels)} labels for {len(positions)} positions")
        for step, label in enumerate(labels):
            if label is None or not 0 <= label <= 1:
                raise unusable_row(row, name, BAD_LABEL, f"column 'step_labels', step {step}: {label}")


def unusable_row(row: int, name: str, problem: str, detail: str) -> ValueError:
    """Returns the error for a row of the dataset `name`, with the fix of its problem."""
    return ValueError(f"Row {row} of the {name} dataset has {problem} ({detail}). {REMEDY[problem]}")


def droppable_row(row: int, name: str, problem: str, detail: str) -> ValueError:
    """Returns the error of [`unusable_row`], and adds that such rows can be dropped."""
    error = unusable_row(row, name, problem, detail)
    return ValueError(f'{error} To drop and count such rows, set invalid_rows="drop".')
