"""Prepares the datasets of [`ERPRMTrainer`]: encodes rollouts, labelled steps, token ids and streams."""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from ...io.paths import local_path
from ...rollouts.dataset import RolloutDataset
from ...rollouts.grading.worker import METHODS
from ..prm_format import PRMFormat
from .erprm_config import ERPRMConfig
from .preprocessing import ENCODED_COLUMNS, encode_examples, encode_rollouts
from .row_problems import check_encoded_labels
from .streaming import encode_stream


logger = logging.getLogger(__name__)


class PreparedDataset(NamedTuple):
    """Encoded examples, the counts of [`encode_examples`] (`None` for examples that were encoded before, and for
    streams), and the manifest of a rollout dataset."""

    examples: Dataset | IterableDataset
    counts: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None


def prepare_dataset(
    dataset: Any,
    tokenizer,
    prm_format: PRMFormat,
    args: ERPRMConfig,
    *,
    name: str,
    max_length: int | None,
    is_training: bool,
) -> PreparedDataset:
    """
    Checks and encodes a dataset of [`ERPRMTrainer`].

    Args:
        dataset (`Any`):
            A rollout folder or its [`RolloutDataset`], a `datasets.Dataset` or a `datasets.IterableDataset`.
        tokenizer, prm_format, max_length:
            See [`encode_examples`].
        args ([`ERPRMConfig`]):
            Arguments of the training run.
        name (`str`):
            Name of the dataset in errors and logs.
        is_training (`bool`):
            Whether the dataset is used for training. Evaluation datasets keep the labels of all steps, have no
            weights, and are read into memory if they are streams.

    Raises:
        `FileNotFoundError`: if a path holds no rollouts.
        `TypeError`: for a dataset of another type.
        `ValueError`: see [`encode_examples`] and [`encode_stream`].
    """
    options: dict[str, Any] = {
        "name": name,
        "max_length": max_length,
        "last_step_only": args.train_on_last_step_only and is_training,
        "invalid_rows": args.invalid_rows,
        "label_weighting": args.label_weighting if is_training else "none",
    }
    dataset = open_rollouts(dataset, name)
    if isinstance(dataset, IterableDataset):
        if is_training:
            return PreparedDataset(encode_stream(dataset, tokenizer, prm_format, **options))
        dataset = Dataset.from_list(list(dataset.with_format(None)))
    options["num_proc"] = args.dataset_num_proc
    if isinstance(dataset, RolloutDataset):
        _warn_of_other_steps(dataset, prm_format, name)
        encoded, counts = encode_rollouts(dataset, args.eta, args.label_estimator, tokenizer, prm_format, **options)
        return PreparedDataset(encoded, counts, dataset.manifest)
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"The {name} dataset is a {type(dataset).__name__}, expected a datasets.Dataset, a "
            f"datasets.IterableDataset, a RolloutDataset or a rollout folder. {_remedy(dataset)}"
        )
    if ENCODED_COLUMNS.issubset(dataset.column_names):
        check_encoded_labels(dataset, name)
        return PreparedDataset(dataset)
    return PreparedDataset(*encode_examples(dataset, tokenizer, prm_format, **options))


def labels_eta(dataset: Any, args: ERPRMConfig) -> float | None:
    """
    Returns the eta of the training labels, which the model's format records. It is `None` if it is not known, or if
    rewards may differ from 0 and 1, because only values of 0/1 rewards can be read at another eta.

    Args:
        dataset (`Any`):
            The training dataset, from [`open_rollouts`].
        args ([`ERPRMConfig`]):
            Arguments of the training run.
    """
    if args.recorded_eta is not None or not isinstance(dataset, RolloutDataset):
        return args.recorded_eta
    if dataset.settings.grading not in METHODS:
        logger.info(
            "The model's format does not record eta, because the grading %s may give other rewards than 0 and 1. Set "
            "recorded_eta in ERPRMConfig if it does not.", dataset.settings.grading,
        )  # fmt: skip
        return None
    # The label of the last step is the solution's own reward at every eta, which is a success rate.
    return 0.0 if args.train_on_last_step_only else args.eta


def open_rollouts(dataset: Any, name: str) -> Any:
    """
    Opens the rollout folder if `dataset` is a path, and returns any other dataset unchanged.

    Raises:
        `FileNotFoundError`: if the path holds no rollouts.
    """
    if not isinstance(dataset, (str, os.PathLike)):
        return dataset
    try:
        return RolloutDataset(local_path(dataset))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The {name} dataset: {error} If it already has labels, load it with datasets.load_dataset or "
            "datasets.load_from_disk, and pass the loaded dataset."
        ) from error


def _warn_of_other_steps(dataset: RolloutDataset, prm_format: PRMFormat, name: str) -> None:
    """Warns if the format splits texts into other steps than the rollouts have."""
    for setting in ("splitter", "steps_of"):
        of_rollouts, of_format = getattr(dataset.settings, setting), getattr(prm_format, setting)
        if of_rollouts != of_format:
            logger.warning(
                "The %s dataset has rollouts with %s=%r, but the reward model's format has %r. The model would be "
                "trained and used with different steps. Set %s=%r in ERPRMConfig.",
                name, setting, of_rollouts, of_format, setting, of_rollouts,
            )  # fmt: skip


def _remedy(dataset: Any) -> str:
    if isinstance(dataset, Mapping) and all(isinstance(part, (Dataset, IterableDataset)) for part in dataset.values()):
        return f"Pass one of its splits: {', '.join(f'dataset[{split!r}]' for split in dataset)}."
    return "Convert a list of rows with datasets.Dataset.from_list(rows)."
