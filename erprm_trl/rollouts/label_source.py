"""Computes the labels of a rollout folder in one pass over the rows, and writes them to an Arrow file, which later
runs reuse.

A trainer encodes the labels in the same pass, so that only the encoded examples are written.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..io.atomic_files import replace_file
from .label_cleaning import KEPT, QUESTIONS, LabelCleaning
from .labels import PosteriorValues, labelled_example
from .records import RolloutRow


logger = logging.getLogger(__name__)

BATCH_SIZE = 1000  # number of examples that are encoded together

Columns = dict[str, list[Any]]


class LabelSource:
    """
    Labels at one eta that are not computed yet.

    Args:
        rows (`Iterable[RolloutRow]`):
            Rows with labels. They are iterated over once, and twice for `"posterior"`, where the first pass fits the
            prior.
        splitter (`str`):
            Splitter of the solutions.
        eta (`float`):
            Inverse reward temperature.
        estimator (`str`):
            `"sample"` or `"posterior"`, see [`RolloutDataset.labels`].
        key (`Sequence`):
            Everything on which the labels depend. The name of the file is made from its `repr`.
        cache_dir (`str`, *optional*):
            Folder of the files. Defaults to the cache of `datasets`.
        cleaning ([`LabelCleaning`], *optional*):
            Options that leave out solutions or change labels. With them, a manifest is written next to the labels.
    """

    def __init__(
        self,
        rows: Iterable[RolloutRow],
        splitter: str,
        eta: float,
        estimator: str,
        key: Sequence[Any],
        cache_dir: str | None = None,
        cleaning: LabelCleaning | None = None,
    ):
        self._rows, self._splitter, self._eta, self._estimator = rows, splitter, eta, estimator
        self._key, self._cache_dir, self._cleaning = key, cache_dir, cleaning

    @property
    def column_names(self) -> list[str]:
        """Columns of a labelled example."""
        return ["prompt", "completions", "labels", *(["label_std"] if self._estimator == "posterior" else [])]

    @property
    def fingerprint(self) -> str:
        """A hash that identifies the labels."""
        return key_fingerprint(self._key)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """
        Describes the effect of the options: `options`, `estimator` and `eta`, the numbers of `solutions` and of `kept`
        ones, the `dropped` solutions by reason, and the number of `dropped_questions`. `None` without options.

        It is read from the file `labels-<fingerprint>.json`. If the file is missing, the labels are computed again.
        """
        if self._cleaning is None:
            return None
        if not self._manifest_path.exists():
            for _ in self._examples():
                pass
        return json.loads(self._manifest_path.read_text(encoding="utf-8"))

    @property
    def _manifest_path(self) -> Path:
        from datasets import config

        return Path(self._cache_dir or config.HF_DATASETS_CACHE) / f"labels-{self.fingerprint}.json"

    def labels(self):
        """The labelled examples as a `datasets.Dataset`, in TRL's stepwise format."""
        from datasets import Features, List, Value

        types = {
            "prompt": Value("string"),
            "completions": List(Value("string")),
            "labels": List(Value("float64")),
            "label_std": List(Value("float64")),
        }
        features = Features({name: types[name] for name in self.column_names})
        return self._write(self._examples, features, self.fingerprint)

    def encoded(self, encode: Callable[[Columns], Columns], features, fingerprint: str):
        """
        The encoded labelled examples as a `datasets.Dataset`. The labels themselves are not written.

        Args:
            encode (`Callable`):
                Function from the columns of a batch of labelled examples to the columns of `features`, with one value
                per example.
            features (`datasets.Features`):
                Columns of the encoded examples.
            fingerprint (`str`):
                Hash that identifies the labels and the encoding.

        Returns:
            `datasets.Dataset`: the encoded examples.
        """

        def encoded_examples() -> Iterator[dict[str, Any]]:
            examples = self._examples()
            while batch := list(islice(examples, BATCH_SIZE)):
                columns = encode({name: [example[name] for example in batch] for name in self.column_names})
                for values in zip(*columns.values(), strict=True):
                    yield dict(zip(columns, values, strict=True))

        return self._write(encoded_examples, features, fingerprint)

    def _examples(self) -> Iterator[dict[str, Any]]:
        posterior = PosteriorValues.fit(self._rows, self._eta) if self._estimator == "posterior" else None
        if self._cleaning is None:
            for row in self._rows:
                yield labelled_example(row, self._splitter, self._eta, posterior)
            return
        counts: Counter[str] = Counter()
        for row, rate in self._cleaning.kept(self._rows, counts):
            yield labelled_example(row, self._splitter, self._eta, posterior, self._cleaning.options, rate)
        self._record(counts)

    def _record(self, counts: Counter[str]) -> None:
        """Writes the manifest. Raises a `ValueError` if no solution is kept."""
        kept, questions = counts.pop(KEPT, 0), counts.pop(QUESTIONS, 0)
        dropped = {reason: count for reason, count in counts.items() if count}
        if not kept and dropped:
            raise ValueError(
                f"Label options: got {self._cleaning.describe()}, which leave out every solution "
                f"({_shown(dropped)}), expected to keep some. Relax the options."
            )
        manifest = {
            "options": self._cleaning.describe(),
            "estimator": self._estimator,
            "eta": self._eta if math.isfinite(self._eta) else str(self._eta),
            "solutions": kept + sum(dropped.values()),
            "kept": kept,
            "dropped": dropped,
            "dropped_questions": questions,
        }
        self._manifest_path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._manifest_path, json.dumps(manifest, indent=2))

    def _log_dropped(self) -> None:
        """Logs how many solutions the options left out, also if the labels were computed earlier."""
        manifest = self.manifest
        if manifest is not None and manifest["dropped"]:
            logger.warning(
                "Label options %s leave out %d of %d solutions: %s.",
                manifest["options"], manifest["solutions"] - manifest["kept"], manifest["solutions"],
                _shown(manifest["dropped"]),
            )  # fmt: skip

    def _write(self, generator: Callable[[], Iterator[dict[str, Any]]], features, fingerprint: str):
        written = write_examples(generator, features, fingerprint, self._cache_dir)
        self._log_dropped()
        return written


def write_examples(
    generator: Callable[[], Iterator[dict[str, Any]]], features, fingerprint: str, cache_dir: str | None
):
    """
    Writes examples to an Arrow file. An existing file with the fingerprint is reused. With several processes, the
    first writes the file while the others wait.

    Args:
        generator (`Callable`):
            Function that yields the examples. Its errors are raised unchanged.
        features (`datasets.Features`):
            Columns of the examples.
        fingerprint (`str`):
            Hash that identifies the examples, see [`key_fingerprint`].
        cache_dir (`str`, *optional*):
            Folder of the file. Defaults to the cache of `datasets`.

    Returns:
        `datasets.Dataset`: the examples.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return Dataset.from_generator(generator, features=features, fingerprint=fingerprint, cache_dir=cache_dir)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None  # show the error of the labels instead of that of `datasets`


def key_fingerprint(key: Sequence[Any]) -> str:
    """A hash of everything on which examples depend."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def label_key(version: int, shards: Sequence[Path], estimator: str, eta: float, options: str = "") -> tuple[Any, ...]:
    """Everything on which labels depend: the version of the code that computes them, the size and time of each shard,
    the estimator, eta, and a text of the options, which is empty for plain labels."""
    states = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    return version, states, f"{estimator} {eta!r}", *([options] if options else [])


def _shown(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} with {reason}" for reason, count in sorted(dropped.items()))
