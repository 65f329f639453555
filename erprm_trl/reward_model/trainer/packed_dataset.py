"""Packs an encoded dataset into rows of a fixed length before the training, as TRL's `packing_strategy="bfd"` does.

A packed row only holds the indices of its examples. The examples are read from the encoded dataset when a batch is
formed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..collator import PACKED, best_fit_decreasing


BUFFER_SIZE = 1000
"""Number of examples that are packed together. TRL packs as many."""


class _Read:
    """A transform that replaces the indices of packed examples by the examples."""

    def __init__(self, examples: Dataset):
        self.examples = examples

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if PACKED not in batch:
            return batch
        return {**batch, PACKED: [[self.examples[index] for index in indices] for indices in batch[PACKED]]}


def pack_dataset(
    examples: Dataset | IterableDataset, row_length: int | None, seed: int, name: str
) -> Dataset | IterableDataset:
    """
    Packs examples into rows by [`best_fit_decreasing`]. Examples are shuffled first, so that rows do not depend on the
    order of the dataset. A stream is packed in its order.

    Args:
        examples (`Dataset` or `IterableDataset`):
            Encoded examples.
        row_length (`int` or `None`):
            Maximum length of a row, in tokens.
        seed (`int`):
            Seed of the shuffling.
        name (`str`):
            Name of the dataset in errors.

    Returns:
        `Dataset` or `IterableDataset`: one entry per row, with the columns `packed_examples` (a list of examples) and
        `length` (the number of tokens).

    Raises:
        `ValueError`: if `row_length` is `None`.
    """
    if row_length is None:
        raise ValueError(
            f"The {name} dataset: got packing_strategy='bfd' with max_length=None and a model without a context "
            "length, expected a length of the packed rows. Set max_length."
        )
    if isinstance(examples, IterableDataset):
        columns = list(next(iter(examples)))
        return examples.map(
            partial(_packed_stream, row_length=row_length),
            batched=True,
            batch_size=BUFFER_SIZE,
            remove_columns=columns,
        )
    lengths = _lengths(examples)
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows: list[list[int]] = []
    for start in range(0, len(order), BUFFER_SIZE):
        buffer = order[start : start + BUFFER_SIZE]
        packed = best_fit_decreasing([lengths[index] for index in buffer], row_length)
        rows += [buffer[indices].tolist() for indices in packed]
    columns = {PACKED: rows, "length": [sum(lengths[index] for index in row) for row in rows]}
    return Dataset.from_dict(columns).with_transform(_Read(examples))


def unpacked_dataset(dataset: Dataset) -> Dataset:
    """The examples of a dataset of [`pack_dataset`], or the dataset itself if it is not packed."""
    transform = dataset.format["format_kwargs"].get("transform")
    return transform.examples if isinstance(transform, _Read) else dataset


def _lengths(examples: Dataset) -> Sequence[int]:
    if "length" in examples.column_names:
        return examples.with_format(None)["length"][:]
    return [len(ids) for ids in examples.with_format(None)["input_ids"]]


def _packed_stream(batch: dict[str, list], row_length: int) -> dict[str, list[Any]]:
    lengths = [len(ids) for ids in batch["input_ids"]]
    rows = best_fit_decreasing(lengths, row_length)
    return {
        PACKED: [[{name: values[index] for name, values in batch.items()} for index in row] for row in rows],
        "length": [sum(lengths[index] for index in row) for row in rows],
    }
