"""Loads labelled steps from a file, a folder, the Hub or a function."""

import os
from typing import Any

from datasets import Dataset, IterableDataset

from ...io.paths import local_path
from ...rollouts.row_sources import as_dataset, has_splits, read_rows


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
            file, a folder of such files, a folder written by `save_to_disk`, or the name of a function that returns
            rows, as `"package.module:function"`.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split to load from a source with several splits.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`, whose rows are read during the training.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: the unchanged rows. For the columns that the trainer
        reads see [`to_stepwise`].

    Raises:
        `ValueError`: if the file, folder, split or function does not exist, if a file holds no table, or if `split` is
            set for a source without splits.
    """
    several = has_splits(source)
    if split != "train" and not several:
        raise ValueError(
            f"{local_path(source)}: got split={split!r} for a source without splits, expected a source with splits. "
            "Remove `split`, and use another file for other data."
        )
    options: dict[str, Any] = {"streaming": True} if streaming and several else {}
    rows = as_dataset(read_rows(source, config_name, split, options), str(source))
    return rows.to_iterable_dataset() if streaming and isinstance(rows, Dataset) else rows
