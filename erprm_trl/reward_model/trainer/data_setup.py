"""Prepares the datasets of [`ERPRMTrainer`]: encodes rollouts, labelled steps, token ids, streams and mixtures."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset, Features, IterableDataset, Value

from ...io.paths import local_path
from ...rollouts.dataset import RolloutDataset
from ...rollouts.grading.worker import METHODS
from ...rollouts.label_options import Judge, LabelOptions
from ...rollouts.outcomes import outcome_labels
from ...rollouts.records import RolloutRow
from ..prm_format import PRMFormat
from .erprm_config import ERPRMConfig
from .mixture import LabelledSource, examples_per_epoch, log_mixture, mix, mixture_counts, named_sources
from .packed_dataset import pack_dataset
from .preprocessing import (
    ENCODED_COLUMNS,
    count_encoded,
    encode_examples,
    encode_rollouts,
    encoded_features,
    scale_weights,
)
from .reference_log_probs import COLUMN, ReferenceLogProbs
from .row_problems import check_encoded_labels
from .streaming import encode_stream


logger = logging.getLogger(__name__)


class PreparedDataset(NamedTuple):
    """Encoded examples, the counts of [`encode_examples`] (`None` for examples that were encoded before, and for
    streams), and the manifest of each rollout dataset by the name of its dataset."""

    examples: Dataset | IterableDataset
    counts: dict[str, Any] | None = None
    manifests: dict[str, dict[str, Any]] = {}


def prepare_dataset(
    dataset: Any,
    tokenizer,
    prm_format: PRMFormat,
    args: ERPRMConfig,
    *,
    name: str,
    max_length: int | None,
    is_training: bool,
    reference: ReferenceLogProbs | None = None,
    agree_with: Judge | None = None,
) -> PreparedDataset:
    """
    Checks and encodes a dataset of [`ERPRMTrainer`].

    Args:
        dataset (`Any`):
            A rollout folder or its [`RolloutDataset`], a `datasets.Dataset`, a `datasets.IterableDataset`, a
            [`LabelledSource`] with one of them, or a list of these.
        tokenizer, prm_format, max_length:
            See [`encode_examples`].
        args ([`ERPRMConfig`]):
            Arguments of the training run.
        name (`str`):
            Name of the dataset in errors and logs.
        is_training (`bool`):
            Whether the dataset is used for training. Evaluation datasets keep the labels of all steps, have no
            weights, and are read into memory if they are streams. Options that make labels cleaner apply to training
            only.
        agree_with ([`~erprm_trl.rollouts.label_options.Judge`], *optional*):
            See [`~erprm_trl.rollouts.LabelOptions`].
        reference ([`ReferenceLogProbs`], *optional*):
            Adds the log-probabilities under the reference model, for `head="implicit"`.

    Raises:
        `FileNotFoundError`: if a path holds no rollouts.
        `TypeError`: for a dataset of another type.
        `ValueError`: see [`encode_examples`], [`encode_stream`] and [`named_sources`].
    """
    prepare = partial(
        _prepare_source,
        tokenizer=tokenizer,
        prm_format=prm_format,
        args=args,
        max_length=max_length,
        is_training=is_training,
        reference=reference,
        agree_with=agree_with,
    )
    dataset = open_rollouts(dataset, name)
    if isinstance(dataset, list):
        prepared = _prepare_mixture(dataset, args, name, prepare)
    else:
        prepared = prepare(dataset if isinstance(dataset, LabelledSource) else LabelledSource(dataset), name=name)
    if is_training and args.packing and args.packing_strategy == "bfd":
        seed = args.seed if args.data_seed is None else args.data_seed
        return prepared._replace(examples=pack_dataset(prepared.examples, max_length, seed, name))
    return prepared


def _prepare_source(
    source: LabelledSource,
    tokenizer,
    prm_format: PRMFormat,
    args: ERPRMConfig,
    *,
    name: str,
    max_length: int | None,
    is_training: bool,
    reference: ReferenceLogProbs | None,
    agree_with: Judge | None,
) -> PreparedDataset:
    dataset, eta = source.data, _eta_of(source, args, name)
    options: dict[str, Any] = {
        "name": name,
        "max_length": max_length,
        "last_step_only": (args.train_on_last_step_only and is_training) or reference is not None,
        "invalid_rows": args.invalid_rows,
        "label_weighting": args.label_weighting if is_training else "none",
    }
    label_options = args.label_options(agree_with) if is_training else LabelOptions()
    label_options = source.label_options or label_options
    if label_options != LabelOptions():
        _check_label_options(label_options, source, name, reference is not None)
    if isinstance(dataset, IterableDataset):
        if is_training:
            _refuse_for_implicit(reference, name, "a stream", "Read it first with Dataset.from_list(list(stream)).")
            return PreparedDataset(encode_stream(dataset, tokenizer, prm_format, **options))
        dataset = Dataset.from_list(list(dataset.with_format(None)))
    options["num_proc"] = args.dataset_num_proc
    manifests = {}
    if isinstance(dataset, RolloutDataset):
        _warn_of_other_steps(dataset, prm_format, name)
        manifests[name] = dataset.manifest
        if reference is None:
            options["options"] = label_options
            encoded = encode_rollouts(dataset, eta, args.label_estimator, tokenizer, prm_format, **options)
            return PreparedDataset(*encoded, manifests)
        dataset = outcome_labels(dataset)
    if not isinstance(dataset, Dataset):
        raise _wrong_type(dataset, name)
    if ENCODED_COLUMNS.issubset(dataset.column_names):
        check_encoded_labels(dataset, name)
        if reference is not None and not reference.has_made(dataset):
            _refuse_for_implicit(reference, name, "encoded before", "Pass the labelled steps.")
        return PreparedDataset(dataset)
    if {"input_ids", "labels"}.issubset(dataset.column_names):
        _refuse_for_implicit(reference, name, "token ids", "Pass the texts, from which the question's end is known.")
    examples, counts = encode_examples(dataset, tokenizer, prm_format, **options)
    return PreparedDataset(examples if reference is None else reference.add_to(examples, name), counts, manifests)


def _check_label_options(options: LabelOptions, source: LabelledSource, name: str, is_implicit: bool) -> None:
    """Refuses label options that cannot apply, and warns if options of the whole training do not apply to a source."""
    has_rollouts = isinstance(source.data, RolloutDataset)
    if is_implicit or (source.label_options is not None and not has_rollouts):
        reason = "with head='implicit', which learns from outcomes" if is_implicit else "for a dataset with labels"
        raise ValueError(
            f"The {name} dataset: got label options {reason}, expected them for labels that are made from rollouts. "
            "Remove the options."
        )
    if not has_rollouts:
        logger.warning(
            "The %s dataset has no rollouts, so the label options %s do not apply to it. Pass a rollout folder.",
            name, options.to_json(),
        )  # fmt: skip


def _refuse_for_implicit(reference: ReferenceLogProbs | None, name: str, kind: str, remedy: str) -> None:
    if reference is not None:
        raise ValueError(
            f"The {name} dataset is {kind}, expected solutions as texts with head='implicit', whose log-probabilities "
            f"under the reference model are computed before the training. {remedy}"
        )


def _prepare_mixture(
    sources: list[LabelledSource], args: ERPRMConfig, name: str, prepare: Callable[..., PreparedDataset]
) -> PreparedDataset:
    """Prepares each source, mixes them, and counts and logs the examples of each source."""
    for source in sources:
        if isinstance(source.data, IterableDataset):
            raise ValueError(
                f"The {name} dataset: got a stream as source {source.name!r}, expected rollout folders and datasets. "
                "Mix streams with datasets.interleave_datasets(streams, probabilities=...) and pass the result as "
                "train_dataset, or read the stream first with Dataset.from_list(list(stream))."
            )
    prepared = {source.name: prepare(source, name=f"{name}/{source.name}") for source in sources}
    parts = {key: part.examples for key, part in prepared.items()}
    rows = [len(part) for part in parts.values()]
    weights = None if sources[0].weight is None else [source.weight for source in sources]
    uses = examples_per_epoch(rows, weights, args.mixture_stopping_strategy)
    counts = mixture_counts(
        sources,
        [part.counts or count_encoded(part.examples) for part in prepared.values()],
        [_eta_of(source, args, name) if isinstance(source.data, RolloutDataset) else None for source in sources],
        uses,
    )
    log_mixture(counts, name)
    features = Features({**encoded_features(weighted=True), COLUMN: Value("float64")})
    examples = mix(parts, uses, args.seed if args.data_seed is None else args.data_seed, features)
    if "step_weights" in examples.column_names:
        examples = scale_weights(examples)
    manifests = {key: manifest for part in prepared.values() for key, manifest in part.manifests.items()}
    return PreparedDataset(examples, counts, manifests)


def _eta_of(source: LabelledSource, args: ERPRMConfig, name: str) -> float:
    if source.eta is None:
        return args.eta
    if not isinstance(source.data, RolloutDataset):
        raise ValueError(
            f"The {name} dataset: got eta={source.eta} for a {type(source.data).__name__}, expected rollouts, from "
            "whose rewards labels are made. Remove eta, because the dataset already has labels."
        )
    return source.eta


def rollouts_in(dataset: Any) -> list[RolloutDataset]:
    """The rollouts among the sources of a training dataset from [`open_rollouts`]."""
    sources = dataset if isinstance(dataset, list) else [dataset]
    data = [source.data if isinstance(source, LabelledSource) else source for source in sources]
    return [source for source in data if isinstance(source, RolloutDataset)]


def labels_eta(dataset: Any, args: ERPRMConfig, agree_with: Judge | None = None) -> float | None:
    """
    Returns the eta of the training labels, which the model's format records. It is `None` if it is not known, if it
    differs among the sources, if label options change the values, or if rewards may differ from 0 and 1, because only
    values of 0/1 rewards can be read at another eta.

    Args:
        dataset (`Any`):
            The training dataset, from [`open_rollouts`].
        args ([`ERPRMConfig`]):
            Arguments of the training run.
        agree_with ([`Judge`], *optional*):
            The judge of the label options.
    """
    if args.recorded_eta is not None:
        return args.recorded_eta
    sources = dataset if isinstance(dataset, list) else [dataset]
    options = args.label_options(agree_with)
    etas = {_known_eta(source, args, options) for source in sources}
    return etas.pop() if len(etas) == 1 else None


def _known_eta(source: Any, args: ERPRMConfig, options: LabelOptions) -> float | None:
    eta = args.eta
    if isinstance(source, LabelledSource):
        eta = args.eta if source.eta is None else source.eta
        source, options = source.data, source.label_options or options
    if not isinstance(source, RolloutDataset) or options.changes_values:
        return None
    if source.settings.grading not in METHODS:
        logger.info(
            "The model's format does not record eta, because the grading %s may give other rewards than 0 and 1. Set "
            "recorded_eta in ERPRMConfig if it does not.", source.settings.grading,
        )  # fmt: skip
        return None
    # The label of the last step is the solution's own reward at every eta, which is a success rate.
    return 0.0 if args.train_on_last_step_only else eta


def open_rollouts(dataset: Any, name: str) -> Any:
    """
    Opens the rollout folder if `dataset` is a path, also inside a [`LabelledSource`] and a list. Any other dataset is
    returned unchanged.

    Raises:
        `FileNotFoundError`: if the path holds no rollouts.
    """
    if isinstance(dataset, (list, tuple)):
        if any(isinstance(source, (Mapping, RolloutRow)) for source in dataset):
            raise _wrong_type(dataset, name)
        return [open_rollouts(source, name) for source in named_sources(dataset, name)]
    if isinstance(dataset, LabelledSource):
        return replace(dataset, data=open_rollouts(dataset.data, dataset.name or name))
    if not isinstance(dataset, (str, os.PathLike)):
        return dataset
    try:
        return RolloutDataset(local_path(dataset))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The {name} dataset: {error} If it already has labels, load it with "
            "erprm_trl.load_labelled_steps, and pass the loaded dataset."
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


def _wrong_type(dataset: Any, name: str) -> TypeError:
    return TypeError(
        f"The {name} dataset is a {type(dataset).__name__}, expected a datasets.Dataset, a "
        f"datasets.IterableDataset, a RolloutDataset, a rollout folder or a list of these. {_remedy(dataset)}"
    )


def _remedy(dataset: Any) -> str:
    if isinstance(dataset, Mapping) and all(isinstance(part, (Dataset, IterableDataset)) for part in dataset.values()):
        return f"Pass one of its splits: {', '.join(f'dataset[{split!r}]' for split in dataset)}."
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], RolloutRow):
        return "Pass rollouts, or some of their labels: rollouts.labels(eta).select(range(10))."
    return "Convert a list of rows with datasets.Dataset.from_list(rows)."
