"""Mixes several sources of labelled steps into one training dataset, with weights per source."""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from ...io.paths import local_path
from ...rollouts.dataset import RolloutDataset
from ...rollouts.label_options import LabelOptions


logger = logging.getLogger(__name__)

STRATEGIES = ("all_exhausted", "first_exhausted")


@dataclass(frozen=True)
class LabelledSource:
    """
    One of several sources of labelled steps for [`ERPRMTrainer`].

    Args:
        data (`str`, `Path`, [`RolloutDataset`] or [`~datasets.Dataset`]):
            A rollout folder, or a dataset with labels, in a form that [`ERPRMTrainer`] accepts.
        eta (`float`, *optional*):
            Eta of the labels of a rollout folder. Defaults to `eta` of [`ERPRMConfig`].
        weight (`float`, *optional*):
            Weight of the source in the mixture. The source's share of the training examples of an epoch is its weight
            divided by the sum of all weights. Set it for all sources or for none. Without weights, an epoch has every
            row of every source once.
        name (`str`, *optional*):
            Name of the source in logs, metrics and the model card. Defaults to the name of the folder, else to
            `source_1`, `source_2` and so on.
        label_options ([`~erprm_trl.rollouts.LabelOptions`], *optional*):
            Options that make the labels of a rollout folder cleaner. They replace the options of [`ERPRMConfig`],
            and also apply to evaluation.

    Example:

    ```python
    >>> LabelledSource("outputs/rollouts", eta=2.0, weight=0.7, name="own")
    LabelledSource(data='outputs/rollouts', eta=2.0, weight=0.7, name='own', label_options=None)
    ```
    """

    data: Any
    eta: float | None = None
    weight: float | None = None
    name: str | None = None
    label_options: LabelOptions | None = None

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(
                f"LabelledSource.weight: got {self.weight}, expected a number above 0. Leave a source out of the list "
                "to not use it."
            )


def named_sources(sources: Sequence[Any], subject: str) -> list[LabelledSource]:
    """
    Returns each element of a list of sources as a [`LabelledSource`] with a name of its own.

    Args:
        sources (`Sequence`):
            Folders, datasets or [`LabelledSource`].
        subject (`str`):
            Name of the list in errors.

    Raises:
        `ValueError`: if the list is empty, if two sources have the same explicit name, or if only some sources have a
            weight.
    """
    if not sources:
        raise ValueError(f"The {subject} dataset is an empty list, expected at least one source. Add a source.")
    wrapped = [source if isinstance(source, LabelledSource) else LabelledSource(source) for source in sources]
    weights = [source.weight for source in wrapped]
    if None in weights and any(weight is not None for weight in weights):
        raise ValueError(
            f"The {subject} dataset: got sources with the weights {weights}, expected a weight for all of them or for "
            "none. Set LabelledSource(..., weight=...) for each source."
        )
    explicit = [source.name for source in wrapped if source.name is not None]
    for name in explicit:
        if explicit.count(name) > 1:
            raise ValueError(
                f"The {subject} dataset: got several sources with the name {name!r}, expected different names. Rename "
                "all of them but one."
            )
    taken = set(explicit)
    result = []
    for index, source in enumerate(wrapped, start=1):
        if source.name is None:
            name, count = _default_name(source.data, index), 2
            while name in taken:
                name, count = f"{_default_name(source.data, index)}_{count}", count + 1
            taken.add(name)
            source = replace(source, name=name)
        result.append(source)
    return result


def _default_name(data: Any, index: int) -> str:
    if isinstance(data, RolloutDataset):
        data = data.path
    if isinstance(data, (str, os.PathLike)):
        return Path(local_path(data)).absolute().name
    return f"source_{index}"


def examples_per_epoch(counts: Sequence[int], weights: Sequence[float] | None, strategy: str) -> list[int]:
    """
    Number of examples of each source in an epoch.

    Args:
        counts (`Sequence[int]`):
            Number of usable rows of each source, at least 1.
        weights (`Sequence[float]`, *optional*):
            Weight of each source. Without weights, an epoch has every row once.
        strategy (`str`):
            `"all_exhausted"`: the shortest epoch with the shares of the weights in which every row occurs.
            `"first_exhausted"`: the longest epoch with these shares in which no row occurs twice.

    Returns:
        `list[int]`: numbers of examples, at least 1. They are rounded, so shares are exact up to one example.

    Raises:
        `ValueError`: for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"mixture_stopping_strategy: got {strategy!r}, expected one of {', '.join(STRATEGIES)}. Choose one."
        )
    if weights is None:
        return list(counts)
    sizes = [count / weight for count, weight in zip(counts, weights, strict=True)]
    size = max(sizes) if strategy == "all_exhausted" else min(sizes)
    return [max(1, round(weight * size)) for weight in weights]


def mixture_order(counts: Sequence[int], uses: Sequence[int], seed: int) -> np.ndarray:
    """
    The order of the examples of a mixture. It depends only on the arguments.

    A source with more examples than rows repeats all its rows equally often, and a random part of them once more. A
    source with fewer examples than rows is a random part of its rows. The examples of each source are spread evenly
    over the epoch.

    Args:
        counts (`Sequence[int]`):
            Number of rows of each source.
        uses (`Sequence[int]`):
            Number of examples of each source, see [`examples_per_epoch`].
        seed (`int`):
            Seed of the random parts.

    Returns:
        `numpy.ndarray`: indices into the concatenated sources.
    """
    rows, places = [], []
    for index, (count, used) in enumerate(zip(counts, uses, strict=True)):
        part = np.sort(np.random.default_rng([seed, index]).permutation(count)[: used % count])
        rows.append(sum(counts[:index]) + np.concatenate([*([np.arange(count)] * (used // count)), part]))
        places.append((np.arange(used) + 0.5) / used)
    return np.concatenate(rows).astype(np.int64)[np.argsort(np.concatenate(places), kind="stable")]


def mixture_counts(
    sources: Sequence[LabelledSource],
    counts: Sequence[dict[str, Any]],
    etas: Sequence[float | None],
    uses: Sequence[int],
) -> dict[str, Any]:
    """
    Counts the rows and the examples of a mixture, for the log and the model card.

    Args:
        sources (`Sequence[LabelledSource]`):
            The sources, with names.
        counts (`Sequence[dict]`):
            Counts of [`encode_examples`] per source.
        etas (`Sequence[float]`):
            Eta of the labels of each source, `None` for a dataset that already has labels.
        uses (`Sequence[int]`):
            Number of examples per epoch of each source.

    Returns:
        `dict`: the summed counts of [`encode_examples`], and `sources` with the counts of each source by its name,
        its `eta`, `weight`, `examples` per epoch, `share` of them, `unused_rows` (rows that never occur) and
        `repeated_rows` (examples that are repetitions).
    """
    total: dict[str, Any] = {"dropped_rows": Counter()}
    by_source = {}
    for source, own, eta, used in zip(sources, counts, etas, uses, strict=True):
        total["dropped_rows"].update(own["dropped_rows"])
        for key in own.keys() - {"dropped_rows", "labels"}:
            total[key] = total.get(key, 0) + own[key]
        by_source[source.name] = {
            **own,
            "eta": eta,
            "weight": source.weight,
            "examples": used,
            "share": used / sum(uses),
            "unused_rows": max(0, own["kept"] - used),
            "repeated_rows": max(0, used - own["kept"]),
        }
    return {**total, "dropped_rows": dict(total["dropped_rows"]), "sources": by_source}


def log_mixture(counts: dict[str, Any], name: str) -> None:
    """Logs the counts of each source. Unused and repeated rows are a warning."""
    for source, own in counts["sources"].items():
        logger.log(
            logging.WARNING if own["unused_rows"] or own["repeated_rows"] else logging.INFO,
            "%s dataset, source %s: %d examples per epoch (%.1f%%) from %d rows, %d rows unused, %d repeated.",
            name, source, own["examples"], 100 * own["share"], own["kept"], own["unused_rows"], own["repeated_rows"],
        )  # fmt: skip


def mix(parts: Mapping[str, Dataset], uses: Sequence[int], seed: int, features: Features) -> Dataset:
    """
    Mixes encoded datasets into one.

    Args:
        parts (`Mapping[str, Dataset]`):
            Encoded dataset of each source, by the name of the source.
        uses (`Sequence[int]`):
            Number of examples of each source.
        seed (`int`):
            Seed of [`mixture_order`].
        features (`datasets.Features`):
            Types of all columns that encoded datasets may have.

    Returns:
        `Dataset`: the examples in the order of [`mixture_order`]. The sources are not copied.

    Raises:
        `ValueError`: if the sources have different columns.
    """
    columns = {name: sorted(features.keys() & part.column_names) for name, part in parts.items()}
    (first, expected), *others = columns.items()
    for name, own in others:
        if own != expected:
            raise ValueError(
                f"Mixture: got source {first!r} with the columns {expected} and source {name!r} with {own}, expected "
                "the same columns. Pass the labelled steps of both, not examples that were encoded before."
            )
    types = Features({column: features[column] for column in expected})
    aligned = []
    for part in parts.values():
        part = part.with_format(None).select_columns(list(types))
        aligned.append(part if part.features == types else part.cast(types))
    return concatenate_datasets(aligned).select(mixture_order([len(part) for part in aligned], uses, seed))
