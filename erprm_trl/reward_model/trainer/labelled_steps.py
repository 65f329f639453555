"""Loads labelled steps from a file, a folder, the Hub or a function."""

import os
from typing import Any

from datasets import Dataset, IterableDataset

from ...io.paths import local_path
from ...rollouts.row_sources import has_splits, read_rows


def load_labelled_steps(
    source: str | os.PathLike,
    *,
    config_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    Loads a dataset for [`ERPRMTrainer`].

    Args:
        source (`str` or `Path`):
            A dataset id on the Hub, a local `.jsonl`, `.json`, `.csv`, `.tsv` (each also with `.gz`) or `.parquet`
            file, a folder of files or one written by `save_to_disk`, or a function as `"package.module:function"` that
            returns rows.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a source that has several.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`, which is read while the training needs its rows.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The rows as they are. [`to_stepwise`] says which
        columns are read.

    Raises:
        `ValueError`: if there is no such file, folder, split or function, a file holds no table, or a source without
            splits is asked for one.
    """
    several = has_splits(source)
    if split != "train" and not several:
        raise ValueError(
            f"{local_path(source)}: got split={split!r} for a source without splits, expected one with several. "
            "Leave out the split, and name another file for other data."
        )
    options: dict[str, Any] = {"streaming": True} if streaming and several else {}
    rows = read_rows(source, config_name, split, options)
    if not isinstance(rows, (Dataset, IterableDataset)):
        rows = Dataset.from_list(list(rows))
    return rows.to_iterable_dataset() if streaming and isinstance(rows, Dataset) else rows
