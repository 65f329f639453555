"""Labelled steps from every dataset form that process reward models are trained on, checked row by row and encoded.

Nothing is dropped silently: a row that cannot be used is an error that names it, or is counted under its reason.
"""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from ..functional.value_uncertainty import precision_weights
from .encoding import encode_solutions
from .prm_format import PRMFormat


logger = logging.getLogger(__name__)

FORMS = {
    "stepwise": ("completions", "labels"),
    "marked text": ("input", "label"),
    "valued text": ("text", "value"),
}
TEXT_SEPARATOR = "ки"  # closes the steps in Math-Shepherd's and the paper's published texts
_FIRST_STEP = re.compile(r"\s*(?=Step 1\s*:)")

NO_STEPS = "no steps"
EMPTY_STEP = "an empty step"
COUNT_MISMATCH = "labels and steps that differ in number"
BAD_LABEL = "a label that is NaN or outside [0, 1]"
BAD_STD = "a label_std that is missing, NaN or negative"
SEPARATOR_INSIDE = "the separator's token inside a step"
TOO_LONG = "no labelled step within max_length"

_REMEDY = {
    NO_STEPS: "Drop the row.",
    EMPTY_STEP: "Join it with its neighbour.",
    COUNT_MISMATCH: "Give one label a step.",
    BAD_LABEL: "Labels are probabilities that a step is right: rescale rewards to [0, 1].",
    BAD_STD: "Give one standard deviation a step, 0 where the label is exact.",
    SEPARATOR_INSIDE: "Choose a separator that no step contains, or split the step there.",
    TOO_LONG: "Raise max_length.",
}


def to_stepwise(dataset):
    """
    Brings a dataset into TRL's stepwise form `{"prompt", "completions", "labels"}`.

    Args:
        dataset (`datasets.Dataset`):
            In one of three forms. Stepwise: `prompt`, `completions` (steps), `labels` (booleans or floats, one a
            step). Math-Shepherd's: `input` (question and steps, each closed by `ки`) and `label` (the same text with
            `+` or `-` in its place). The paper's: `text` (like `input`) and `value` (one float a step). In the text
            forms the question ends where `Step 1:` begins; text without it is read as steps without a question.

    Returns:
        `datasets.Dataset`: the stepwise form. A row whose text and labels do not fit keeps its mismatch: the encoder
        reports it.

    Raises:
        `ValueError`: if the columns are of no known form, or a `label` does not repeat its `input`.
    """
    columns = set(dataset.column_names)
    form = next((name for name, needed in FORMS.items() if columns.issuperset(needed)), None)
    if form is None:
        known = "; ".join(" and ".join(f"'{column}'" for column in needed) for needed in FORMS.values())
        raise ValueError(
            f"Dataset: got columns {sorted(columns)}, expected one of these pairs: {known}. Rename columns with "
            "dataset.rename_columns."
        )
    if form == "stepwise":
        return dataset
    read = _read_marked_text if form == "marked text" else _read_valued_text
    return dataset.map(read, with_indices=True, remove_columns=dataset.column_names, desc="Reading steps")


def _read_marked_text(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    pieces = row["input"].split(TEXT_SEPARATOR)
    labels, position = [], 0
    for number, piece in enumerate(pieces):
        end = position + len(piece)
        mark = row["label"][end : end + 1]
        is_last = number == len(pieces) - 1
        if row["label"][position:end] != piece or mark not in (("",) if is_last else ("+", "-")):
            raise ValueError(
                f"Row {index}, column 'label': does not repeat 'input' with + or - for each {TEXT_SEPARATOR} (at "
                f"character {position}: "
                f"{row['label'][position : end + 1][-60:]!r}). Drop or mend the row."
            )
        if not is_last:
            labels.append(float(mark == "+"))
        position = end + 1
    return {**_read_steps(pieces), "labels": labels}


def _read_valued_text(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {**_read_steps(row["text"].split(TEXT_SEPARATOR)), "labels": [float(value) for value in row["value"]]}


def _read_steps(pieces: list[str]) -> dict[str, Any]:
    # What follows the last separator was never labelled.
    steps = pieces[:-1]
    question = ""
    if steps and (found := _FIRST_STEP.search(steps[0])):
        question, steps = steps[0][: found.start()], [steps[0][found.end() :], *steps[1:]]
    return {"prompt": question.strip(), "completions": [step.strip() for step in steps]}


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
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows: got {invalid_rows!r}, expected 'error' or 'drop'.")
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset is empty, expected at least one row.")
    dataset = to_stepwise(dataset)
    if "prompt" not in dataset.column_names:
        raise ValueError(f"The {name} dataset has columns {dataset.column_names}, expected 'prompt' among them.")
    if label_weighting not in ("none", "precision"):
        raise ValueError(f"label_weighting: got {label_weighting!r}, expected 'none' or 'precision'.")
    if label_weighting == "precision" and "label_std" not in dataset.column_names:
        raise ValueError(
            f"The {name} dataset has columns {dataset.column_names}, expected 'label_std' among them with "
            "label_weighting='precision'. Label rollouts at a finite eta with label_estimator='posterior', or set "
            "label_weighting='none'."
        )
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "tokenizer": tokenizer,
            "prm_format": prm_format,
            "max_length": max_length,
            "last_step_only": last_step_only,
            "weighted": label_weighting == "precision",
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
    if counts["dropped_rows"]:
        logger.warning(
            "%s dataset: %d of %d rows left out: %s.",
            name,
            len(encoded) - len(kept),
            len(encoded),
            counts["dropped_rows"],
        )
    if dropped_steps:
        logger.warning(
            "%s dataset: %d labelled steps at the end of %d solutions do not fit max_length=%s and are left out.",
            name, counts["dropped_steps"], counts["rows_with_dropped_steps"], max_length,
        )  # fmt: skip
    labels = {label for row in kept["step_labels"][:] for label in row}
    if keep and len(labels) == 1:
        logger.warning("%s dataset: every label is %s: there is nothing to tell steps apart by.", name, *labels)
    if not keep:
        raise ValueError(f"The {name} dataset has no usable row: {counts['dropped_rows']}.")
    kept = kept.remove_columns(["problem", "detail", "num_dropped_steps"])
    return (_scale_weights(kept) if label_weighting == "precision" else kept), counts


def _scale_weights(dataset):
    mean = sum(map(sum, dataset["step_weights"][:])) / sum(map(len, dataset["step_weights"][:]))
    return dataset.map(lambda row: {"step_weights": [weight / mean for weight in row["step_weights"]]})


def _encode_batch(
    batch: dict[str, list],
    tokenizer,
    prm_format: PRMFormat,
    max_length: int | None,
    last_step_only: bool,
    weighted: bool,
) -> dict[str, list]:
    prompts = [prompt or "" for prompt in batch["prompt"]]
    solutions = [[step or "" for step in steps or []] for steps in batch["completions"]]
    encoded = encode_solutions(tokenizer, prm_format, prompts, solutions, max_length)
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
    stds_of = batch["label_std"] if weighted else [None] * len(prompts)
    for prompt, steps, labels, stds, one in zip(prompts, solutions, batch["labels"], stds_of, encoded, strict=True):
        labels = [math.nan if label is None else float(label) for label in labels or []]
        stds = [math.nan if std is None else float(std) for std in stds or []] if weighted else None
        problem, detail = _find_problem(steps, labels, one.separator_inside, stds)
        positions = one.step_positions
        weights = precision_weights(torch.tensor(stds or [])).tolist()[: len(positions)]
        labels = labels[: len(positions)]
        if last_step_only:
            positions, labels = ([], []) if one.num_dropped_steps else (positions[-1:], labels[-1:])
            weights = weights[-1:] if positions else []
        if not problem and not positions:
            problem, detail = TOO_LONG, f"max_length={max_length}, {len(steps)} steps"
        columns["input_ids"].append(one.input_ids)
        columns["step_positions"].append(positions)
        columns["step_labels"].append(labels)
        if weighted:
            columns["step_weights"].append(weights)
        columns["question_id"].append(
            int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:7], "big")
        )
        columns["prompt_length"].append(one.prompt_length)
        columns["length"].append(len(one.input_ids))
        columns["num_dropped_steps"].append(one.num_dropped_steps)
        columns["problem"].append(problem)
        columns["detail"].append(detail)
    return columns


def _find_problem(
    steps: list[str], labels: list[float], separator_inside: int | None, stds: list[float] | None
) -> tuple[str, str]:
    """The first reason why a row cannot be used and where it lies, or two empty strings."""
    if not steps:
        return NO_STEPS, "column 'completions'"
    if len(labels) != len(steps):
        return COUNT_MISMATCH, f"column 'labels' has {len(labels)} for {len(steps)} steps in column 'completions'"
    for number, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if not step.strip():
            return EMPTY_STEP, f"column 'completions', step {number}"
        if not 0 <= label <= 1:
            return BAD_LABEL, f"column 'labels', step {number}: {label}"
    if stds is not None and (len(stds) != len(steps) or not all(std >= 0 for std in stds)):
        return BAD_STD, f"column 'label_std': {stds} for {len(steps)} steps"
    if separator_inside is not None:
        return SEPARATOR_INSIDE, f"column 'completions', step {separator_inside}: {steps[separator_inside][:60]!r}"
    return "", ""
