"""Checks and encodes a streaming dataset of labelled steps while the training reads it.

The length of a stream is unknown, so dropped rows are counted and logged batch by batch.
"""

import logging
from collections import Counter
from functools import partial

from datasets import IterableDataset

from ..prm_format import PRMFormat
from .preprocessing import ENCODED_COLUMNS, check_options, encode_batch, form_of, warn_about_rows
from .row_problems import check_encoded_batch, droppable_row


logger = logging.getLogger(__name__)

_READ_TOGETHER = 100  # number of rows that are checked and encoded at a time


def encode_stream(
    dataset: IterableDataset,
    tokenizer,
    prm_format: PRMFormat,
    *,
    name: str = "train",
    max_length: int | None = None,
    last_step_only: bool = False,
    invalid_rows: str = "error",
    label_weighting: str = "none",
) -> IterableDataset:
    """
    Encodes a stream of labelled steps.

    Args:
        dataset (`datasets.IterableDataset`):
            Labelled steps in a form of [`to_stepwise`], token ids, or encoded examples. The columns are taken from the
            first row.
        tokenizer, prm_format, name, max_length, last_step_only, invalid_rows, label_weighting:
            See [`encode_examples`].

    Returns:
        `datasets.IterableDataset`: rows with the columns of [`encode_examples`].

    Raises:
        `ValueError`: if there is no row, if columns are missing, or for `label_weighting="precision"`, which needs the
            mean over all steps. Also while the stream is read, for an unusable row if `invalid_rows="error"`.
    """
    check_options(invalid_rows, label_weighting)
    if label_weighting != "none":
        raise ValueError(
            f"The {name} dataset is a stream, expected a datasets.Dataset, because "
            f"label_weighting={label_weighting!r} needs the mean weight of all steps. Set label_weighting='none', or "
            "read the stream first with Dataset.from_list(list(stream))."
        )
    dataset = dataset.with_format(None)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"The {name} dataset is empty, expected at least one row.")
    if ENCODED_COLUMNS.issubset(first):
        return dataset.map(partial(_checked, name=name), with_indices=True, batched=True, batch_size=_READ_TOGETHER)
    form = form_of(list(first), name)
    warn_about_rows([first], form, prm_format, name)
    options = {"max_length": max_length, "last_step_only": last_step_only, "weighted": False}
    encode = partial(encode_batch, form=form, tokenizer=tokenizer, prm_format=prm_format, **options)
    examples = dataset.map(
        partial(_usable_examples, encode=encode, name=name, invalid_rows=invalid_rows),
        with_indices=True,
        batched=True,
        batch_size=_READ_TOGETHER,
        remove_columns=list(first),
    )
    if invalid_rows == "drop" and next(iter(examples), None) is None:
        raise ValueError(
            f"The {name} dataset has no usable row, expected at least one. Set invalid_rows='error' to see the first "
            "reason."
        )
    return examples


def _usable_examples(
    batch: dict[str, list], indices: list[int], encode, name: str, invalid_rows: str
) -> dict[str, list]:
    columns = encode(batch)
    problems, details = columns.pop("problem"), columns.pop("detail")
    dropped_steps = columns.pop("num_dropped_steps")
    keep = []
    for row, problem in enumerate(problems):
        if problem and invalid_rows == "error":
            raise droppable_row(indices[row], name, problem, details[row])
        keep += [] if problem else [row]
    if len(keep) < len(problems):
        logger.warning(
            "%s dataset: %d of %d rows, counted from row %d, are dropped: %s.",
            name, len(problems) - len(keep), len(problems), indices[0],
            dict(Counter(problem for problem in problems if problem)),
        )  # fmt: skip
    if shortened := [dropped_steps[row] for row in keep if dropped_steps[row]]:
        logger.warning(
            "%s dataset: %d labelled steps at the end of %d of %d solutions, counted from row %d, do not fit "
            "max_length and are dropped.",
            name, sum(shortened), len(shortened), len(problems), indices[0],
        )  # fmt: skip
    return {column: [values[row] for row in keep] for column, values in columns.items()}


def _checked(batch: dict[str, list], indices: list[int], name: str) -> dict[str, list]:
    check_encoded_batch(batch, indices[0], name)
    return batch
