"""Checks labelled steps row by row and encodes them for the training.

Bad rows are never skipped silently: each is an error that names it, or is counted under its reason.
"""

import hashlib
import logging
import math
from collections import Counter
from typing import Any

import torch

from ...functional.value_posterior import precision_weights
from ..encoding import encode_solutions
from ..prm_format import PRMFormat
from .dataset_formats import FORMS, READING_REMEDY, Row, find_form, read_row


logger = logging.getLogger(__name__)

NO_STEPS = "no steps"
EMPTY_STEP = "an empty step"
COUNT_MISMATCH = "labels and steps that differ in number"
BAD_LABEL = "a label that is NaN or outside [0, 1]"
BAD_STD = "a label_std that is missing, negative or not finite"
SEPARATOR_INSIDE = "the separator's token inside a step"
TOO_LONG = "no labelled step within max_length"

_REMEDY = {
    **READING_REMEDY,
    NO_STEPS: "Drop the row.",
    EMPTY_STEP: "Join it with its neighbour.",
    COUNT_MISMATCH: "Give one label a step.",
    BAD_LABEL: "Labels are probabilities that a step is right: rescale rewards to [0, 1].",
    BAD_STD: "Give one standard deviation a step, 0 where the label is exact.",
    SEPARATOR_INSIDE: "Choose a separator that no step contains, or split the step there.",
    TOO_LONG: "Raise max_length, up to the model's context, or drop the row.",
}


def encode_examples(
    dataset,
    tokenizer,
    prm_format: PRMFormat,
    *,
    name: str = "train",
    max_length: int | None = None,
    last_step_only: bool = False,
    invalid_rows: str = "error",
    num_proc: int | None = None,
    label_weighting: str = "none",
) -> tuple[Any, dict[str, Any]]:
    """
    Checks and encodes a dataset of labelled steps.

    Args:
        dataset (`datasets.Dataset`):
            See [`to_stepwise`].
        tokenizer, prm_format, max_length:
            See [`~erprm_trl.reward_model.encode_solutions`].
        name (`str`, *optional*, defaults to `"train"`):
            Named in errors and logs.
        last_step_only (`bool`, *optional*, defaults to `False`):
            Keeps the label of the last step alone: an outcome reward model.
        invalid_rows (`str`, *optional*, defaults to `"error"`):
            `"error"`, or `"drop"` to count and log them.
        num_proc (`int`, *optional*):
            Processes.
        label_weighting (`str`, *optional*, defaults to `"none"`):
            `"precision"` adds `step_weights` from the dataset's column `label_std`
            ([`~erprm_trl.functional.precision_weights`]), with a mean of 1 over all steps that are kept.

    Returns:
        `tuple`: a `datasets.Dataset` with `input_ids`, `step_positions`, `step_labels`, `question_id`,
        `prompt_length` and `length` (and `step_weights`), and the counts `{"rows", "kept", "steps", "dropped_rows":
        {reason: n}, "rows_with_dropped_steps", "dropped_steps"}`.

    Raises:
        `ValueError`: for the first unusable row if `invalid_rows="error"`; if no row is left; if columns are missing.
    """
    form = _check_arguments(dataset, name, invalid_rows, label_weighting)
    weighted = label_weighting == "precision"
    encoded = dataset.with_format(None).map(
        _encode_batch,
        batched=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "form": form,
            "tokenizer": tokenizer,
            "prm_format": prm_format,
            "max_length": max_length,
            "last_step_only": last_step_only,
            "weighted": weighted,
        },
        num_proc=num_proc,
        desc=f"Encoding {name} dataset",
    )
    problems = encoded["problem"][:]
    if invalid_rows == "error":
        for row, problem in enumerate(problems):
            if problem:
                raise ValueError(
                    f"Row {row} of the {name} dataset has {problem} ({encoded[row]['detail']}). {_REMEDY[problem]} "
                    'invalid_rows="drop" leaves such rows out and counts them.'
                )
    keep = [row for row, problem in enumerate(problems) if not problem]
    kept = encoded.select(keep)
    dropped_steps = [count for count in kept["num_dropped_steps"][:] if count]
    counts = {
        "rows": len(encoded),
        "kept": len(kept),
        "steps": sum(map(len, kept["step_positions"][:])),
        "dropped_rows": dict(Counter(problem for problem in problems if problem)),
        "rows_with_dropped_steps": len(dropped_steps),
        "dropped_steps": sum(dropped_steps),
    }
    _log_counts(kept, counts, name, max_length)
    if not keep:
        raise ValueError(f"The {name} dataset has no usable row: {counts['dropped_rows']}.")
    kept = kept.remove_columns(["problem", "detail", "num_dropped_steps"])
    return (_scale_weights(kept) if weighted else kept), counts


def _check_arguments(dataset, name: str, invalid_rows: str, label_weighting: str) -> str:
    """The form of the dataset, or an error for a column or an argument that does not fit."""
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows: got {invalid_rows!r}, expected 'error' or 'drop'.")
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset is empty, expected at least one row.")
    form = find_form(dataset.column_names)
    if form == "stepwise" and "prompt" not in dataset.column_names:
        raise ValueError(f"The {name} dataset has columns {dataset.column_names}, expected 'prompt' among them.")
    if label_weighting not in ("none", "precision"):
        raise ValueError(f"label_weighting: got {label_weighting!r}, expected 'none' or 'precision'.")
    weighted = label_weighting == "precision"
    if weighted and (form != "stepwise" or "label_std" not in dataset.column_names):
        raise ValueError(
            f"The {name} dataset has columns {dataset.column_names}, expected 'label_std' among them with "
            "label_weighting='precision'. Label rollouts at a finite eta with label_estimator='posterior', or set "
            "label_weighting='none'."
        )
    return form


def _log_counts(kept, counts: dict[str, Any], name: str, max_length: int | None) -> None:
    """Warns of what was left out, and of labels that are all the same."""
    if counts["dropped_rows"]:
        logger.warning(
            "%s dataset: %d of %d rows left out: %s.",
            name,
            counts["rows"] - counts["kept"],
            counts["rows"],
            counts["dropped_rows"],
        )
    if counts["dropped_steps"]:
        logger.warning(
            "%s dataset: %d labelled steps at the end of %d solutions do not fit max_length=%s and are left out.",
            name, counts["dropped_steps"], counts["rows_with_dropped_steps"], max_length,
        )  # fmt: skip
    labels = {label for row in kept["step_labels"][:] for label in row}
    if len(labels) == 1:
        logger.warning("%s dataset: every label is %s: there is nothing to tell steps apart by.", name, *labels)


def check_encoded_labels(dataset, name: str = "train") -> None:
    """
    Checks the labels of a dataset that was encoded elsewhere, because the loss does not check them.

    Args:
        dataset (`datasets.Dataset`):
            Columns `step_positions` and `step_labels`, as [`encode_examples`] returns them.
        name (`str`, *optional*, defaults to `"train"`):
            Named in errors.

    Raises:
        `ValueError`: for the first row whose labels and positions differ in number, or with a label that is missing,
            NaN or outside [0, 1].
    """
    row = 0
    for batch in dataset.with_format(None).select_columns(["step_positions", "step_labels"]).iter(batch_size=1000):
        for positions, labels in zip(batch["step_positions"], batch["step_labels"], strict=True):
            problem, detail = None, ""
            if len(positions) != len(labels):
                problem, detail = COUNT_MISMATCH, f"{len(labels)} labels for {len(positions)} positions"
            for step, label in enumerate(labels):
                if not problem and not (label is not None and 0 <= label <= 1):
                    problem, detail = BAD_LABEL, f"column 'step_labels', step {step}: {label}"
            if problem:
                raise ValueError(f"Row {row} of the {name} dataset has {problem} ({detail}). {_REMEDY[problem]}")
            row += 1


def _scale_weights(dataset):
    mean = sum(map(sum, dataset["step_weights"][:])) / sum(map(len, dataset["step_weights"][:]))
    return dataset.map(lambda row: {"step_weights": [weight / mean for weight in row["step_weights"]]})


def _encode_batch(
    batch: dict[str, list],
    form: str,
    tokenizer,
    prm_format: PRMFormat,
    max_length: int | None,
    last_step_only: bool,
    weighted: bool,
) -> dict[str, list]:
    rows = [
        read_row(dict(zip(batch, values, strict=True)), form, weighted) for values in zip(*batch.values(), strict=True)
    ]
    encoded = encode_solutions(
        tokenizer, prm_format, [row.prompt for row in rows], [row.steps for row in rows], max_length
    )
    columns: dict[str, list] = {
        key: []
        for key in (
            "input_ids",
            "step_positions",
            "step_labels",
            *(["step_weights"] if weighted else []),
            "question_id",
            "prompt_length",
            "length",
            "num_dropped_steps",
            "problem",
            "detail",
        )
    }
    for row, one in zip(rows, encoded, strict=True):
        problem, detail = _find_problem(row, one.separator_inside, *FORMS[form])
        positions = one.step_positions
        weights = precision_weights(torch.tensor(row.stds or [])).tolist()[: len(positions)]
        labels = row.labels[: len(positions)]
        if last_step_only:
            positions, labels = ([], []) if one.num_dropped_steps else (positions[-1:], labels[-1:])
            weights = weights[-1:] if positions else []
        if not problem and not positions:
            problem, detail = TOO_LONG, f"max_length={max_length}, {len(row.steps)} steps"
        columns["input_ids"].append(one.input_ids)
        columns["step_positions"].append(positions)
        columns["step_labels"].append(labels)
        if weighted:
            columns["step_weights"].append(weights)
        columns["question_id"].append(
            int.from_bytes(hashlib.sha256(row.prompt.encode("utf-8", "surrogatepass")).digest()[:7], "big")
        )
        columns["prompt_length"].append(one.prompt_length)
        columns["length"].append(len(one.input_ids))
        columns["num_dropped_steps"].append(one.num_dropped_steps)
        columns["problem"].append(problem)
        columns["detail"].append(detail)
    return columns


def _find_problem(row: Row, separator_inside: int | None, text_column: str, label_column: str) -> tuple[str, str]:
    """The first reason why a row cannot be used and where it lies, or two empty strings."""
    steps, labels, stds = row.steps, row.labels, row.stds
    if row.problem:
        return row.problem, row.detail
    if not steps:
        return NO_STEPS, f"column '{text_column}'"
    if len(labels) != len(steps):
        return (
            COUNT_MISMATCH,
            f"column '{label_column}' has {len(labels)} for {len(steps)} steps in column '{text_column}'",
        )
    for number, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if not step.strip():
            return EMPTY_STEP, f"column '{text_column}', step {number}"
        if not 0 <= label <= 1:
            return BAD_LABEL, f"column '{label_column}', step {number}: {label}"
    if stds is not None and (len(stds) != len(steps) or not all(0 <= std < math.inf for std in stds)):
        return BAD_STD, f"column 'label_std': {stds} for {len(steps)} steps"
    if separator_inside is not None:
        return SEPARATOR_INSIDE, f"column '{text_column}', step {separator_inside}: {steps[separator_inside][:60]!r}"
    return "", ""
