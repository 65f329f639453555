"""The rollouts of a folder as a dataset: rows, solutions by question, and soft step labels for any eta.

A folder holds raw rewards. Labels are computed from them when they are asked for, and cached.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..io.paths import local_path
from .label_source import LabelSource, label_key
from .labels import LABEL_VERSION, sample_values
from .records import CollectionSettings, RolloutRow
from .shards import MANIFEST, RolloutRows, read_chunks, read_manifest, shard_paths


logger = logging.getLogger(__name__)

LABELS = "labels"
_USABLE, _LACKS_CONTINUATIONS = 0, 1  # states of rows; each reason of unusable rows gets the next number


class RolloutDataset:
    """
    The rollouts of a folder that [`collect_rollouts`] wrote, in the order of the questions, whichever processes
    sampled them.

    Args:
        path (`str` or `Path`):
            The folder.

    Attributes:
        rows (`Sequence[RolloutRow]`): one row per solution, see [`RolloutRow`]. A row is read from disk when it is
            asked for.
        manifest (`dict`): settings, versions, and counts of what was kept and dropped.
        settings ([`CollectionSettings`]): the settings in the manifest, typed.

    Raises:
        `FileNotFoundError`: if the folder holds no manifest.
        `ValueError`: if a shard is damaged (file, line and remedy are named).
    """

    def __init__(self, path: str | Path):
        self.path = Path(local_path(path))
        self.manifest = read_manifest(self.path)
        if self.manifest is None:
            raise FileNotFoundError(
                f"No {MANIFEST} in {self.path}: not a folder of rollouts. Run recipes/collect_rollouts.py."
            )
        self._shards = shard_paths(self.path)
        self._reasons: list[str] = []
        places, self._states = self._index_rows()
        self.rows = RolloutRows(self._shards, places)

    @property
    def settings(self) -> CollectionSettings:
        """Settings of the collection."""
        return CollectionSettings.from_json(self.manifest["config"])

    def _index_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Where the rows of complete chunks begin, in the order of the questions, and the state of each: whether it has
        labels, and if not, why. These 18 bytes per row are all that is kept in memory.
        """
        settings = self.settings
        rows_in_chunk = settings.chunk_sizes
        num_rows = settings.num_questions * settings.num_solutions
        places, states = np.full((num_rows, 2), -1), np.zeros(num_rows, dtype=np.int16)
        for shard_index, shard in enumerate(self._shards):
            for chunk, rows, starts in read_chunks(shard, len(rows_in_chunk)):
                if len(rows) != rows_in_chunk[chunk]:
                    continue
                for row, start in zip(rows, starts[:-1], strict=True):  # the last start is the end of the chunk
                    index = row.question_index * settings.num_solutions + row.solution_index
                    places[index] = shard_index, start
                    states[index] = self._state(row)
        complete = places[:, 0] >= 0
        return places[complete], states[complete]

    def _state(self, row: RolloutRow) -> int:
        if row.is_usable:
            return _LACKS_CONTINUATIONS if row.lacks_continuations else _USABLE
        if row.unusable not in self._reasons:
            self._reasons.append(row.unusable)
        return _LACKS_CONTINUATIONS + 1 + self._reasons.index(row.unusable)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RolloutRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> RolloutRow:
        return self.rows[index]

    def labels(self, eta: float, estimator: str | None = None):
        r"""
        Soft step labels for any eta, in TRL's stepwise form; nothing is sampled again.

        The label of a proper prefix is its entropy-regularised value, estimated from its continuations in one of two
        ways; the last step has no continuation, its label is the solution's own reward.

        Args:
            eta (`float`):
                Inverse reward temperature: 0 gives Math-Shepherd's soft labels, `inf` its hard labels.
            estimator (`str`, *optional*):
                `"sample"`: the value of the rewards as they are ([`~erprm_trl.functional.soft_value`]); for finite eta
                > 0 too low on average. `"posterior"`: the mean of the value's posterior
                ([`~erprm_trl.functional.posterior_value`]), with a prior that is fitted on the whole collection: free
                of that bias and of the one of stopping early, for rewards in [0, 1] and finite eta. Defaults to
                `"posterior"` for adaptive collections at finite eta, else to `"sample"`.

        Returns:
            `datasets.Dataset`: on the disk, in the folder's `labels` (in the cache of `datasets` if the folder cannot
            be written to), where they are found again. Columns `prompt` (`str`), `completions` (`list[str]`, steps
            without delimiters) and `labels` (`list[float]`, one a step), and with `"posterior"` also `label_std`
            (`list[float]`, the labels' standard deviations, 0 for the last step). Solutions marked `unusable` are left
            out; the log says how many.

        Raises:
            `ValueError`: if the rollouts were collected without continuations, eta is NaN, the estimator is unknown,
                or there is no posterior (eta infinite, rewards outside [0, 1]).
        """
        return self.label_source(eta, estimator).labels()

    def label_source(self, eta: float, estimator: str | None = None) -> LabelSource:
        """
        The labels of [`labels`] before they are computed: a trainer encodes them in the same pass over the rows.

        The checks of [`labels`] that need no computation are done here, and solutions without labels are logged.
        """
        settings = self.settings
        if estimator is None:
            estimator = "posterior" if settings.is_adaptive and math.isfinite(eta) else "sample"
        if estimator not in ("sample", "posterior"):
            raise ValueError(f"estimator: got {estimator!r}, expected 'sample', 'posterior' or None.")
        self._check_continuations()
        if estimator == "sample":
            sample_values([[0.0]], eta)  # raises for an eta that has no labels
        return LabelSource(
            _UsableRows(self.rows),
            settings.splitter,
            eta,
            estimator,
            # Another name as soon as a shard changes, or the version of the code that makes labels.
            key=label_key(LABEL_VERSION, self._shards, estimator, eta),
            cache_dir=str(self.path / LABELS) if os.access(self.path, os.W_OK) else None,
        )

    def _check_continuations(self) -> None:
        # Opening the folder has read every row: nothing is read again.
        lacking = np.flatnonzero(self._states == _LACKS_CONTINUATIONS)
        if lacking.size:
            row = self.rows[int(lacking[0])]
            raise ValueError(
                f"{self.path}: {row.name} has {len(row.steps)} steps and rewards for {len(row.prefix_rewards)} "
                "prefixes: it was collected with num_continuations=0. Collect with num_continuations >= 1 to get "
                "labels."
            )
        unusable = Counter(self._states[self._states > _LACKS_CONTINUATIONS].tolist())
        if unusable:
            counts = {self._reasons[state - _LACKS_CONTINUATIONS - 1]: count for state, count in unusable.items()}
            shown = ", ".join(f"{count} with {reason}" for reason, count in sorted(counts.items()))
            logger.warning("%s: %d of %d solutions get no labels: %s.", self.path, unusable.total(), len(self), shown)

    def solutions(self) -> list[list[RolloutRow]]:
        """The rows grouped by question, as best-of-N takes them."""
        rows_of_question: dict[int, list[RolloutRow]] = {}
        for row in self.rows:
            rows_of_question.setdefault(row.question_index, []).append(row)
        return list(rows_of_question.values())


class _UsableRows:
    """The rows with labels. Can be iterated over again and again."""

    def __init__(self, rows: RolloutRows):
        self._rows = rows

    def __iter__(self) -> Iterator[RolloutRow]:
        return (row for row in self._rows if row.is_usable)
