"""Reads the rollouts of a folder as a dataset: rows, solutions by question, and soft step labels for any eta.

A folder contains raw rewards. Labels are computed from them on request, and cached.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..io.counts import counted
from ..io.paths import local_path
from .hub import download_rollouts, is_hub_id, upload_rollouts
from .judge_verdicts import JudgeVerdicts, judge_identity, judge_name
from .label_cleaning import LabelCleaning, question_rates
from .label_options import Judge, LabelOptions
from .label_source import LabelSource, label_key
from .labels import LABEL_VERSION, sample_values
from .records import CollectionSettings, RolloutRow
from .shards import MANIFEST, RolloutRows, read_chunks, read_manifest, shard_paths


logger = logging.getLogger(__name__)

LABELS = "labels"
_USABLE, _LACKS_CONTINUATIONS = 0, 1  # states of rows; each reason for unusable rows gets the next number


class RolloutDataset:
    """
    The rollouts of a folder that [`collect_rollouts`] wrote. The rows are in the order of the questions, for any
    number of processes that sampled them.

    Args:
        path (`str` or `Path`):
            Folder of the collection, or the id of a dataset on the Hub that [`push_to_hub`] uploaded. If a folder and
            a dataset have the same name, the folder is read.

    Attributes:
        rows (`Sequence[RolloutRow]`): one row per solution, see [`RolloutRow`]. Rows are read from disk on access.
        manifest (`dict`): settings and versions of the collection, and its summary.
        settings ([`CollectionSettings`]): the settings in the manifest.

    Raises:
        `FileNotFoundError`: if the folder has no manifest.
        `ValueError`: if a shard is damaged. The message names the file, the line and the fix.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {counted(len(self), 'solution')})"

    def __init__(self, path: str | Path):
        path = local_path(path)
        on_hub = is_hub_id(path)
        self.path = download_rollouts(path) if on_hub else Path(path)
        self.manifest = None if self.path.is_file() else read_manifest(self.path)
        if self.manifest is None:
            raise FileNotFoundError(
                f"{self.path}: got no {MANIFEST}, so this is not a rollout folder, expected a folder that "
                "collect_rollouts wrote. Collect rollouts first, e.g. with erprm collect."
            )
        self._shards = shard_paths(self.path)
        self._reasons: list[str] = []
        places, self._states = self._index_rows()
        self.rows = RolloutRows(self._shards, places)
        if on_hub:
            self._check_complete(path)

    @property
    def settings(self) -> CollectionSettings:
        """The settings of the collection."""
        return CollectionSettings.from_json(self.manifest["config"])

    def _index_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Reads the byte offsets of all rows in complete chunks, in the order of the questions, and the state of each
        row: whether it has labels, and if not, why. Only these 18 bytes per row are kept in memory.
        """
        settings = self.settings
        rows_in_chunk = settings.chunk_sizes
        ends = np.cumsum(rows_in_chunk)
        places, states = np.full((ends[-1], 2), -1), np.zeros(ends[-1], dtype=np.int16)
        left_out: dict[int, int] = {}
        for shard_index, shard in enumerate(self._shards):
            for chunk, rows, starts in read_chunks(shard, len(rows_in_chunk)):
                if len(rows) != rows_in_chunk[chunk]:
                    left_out[chunk] = len(rows)
                    continue
                # The rows of a chunk are in the order of the questions. The last start is the end of the chunk.
                index = slice(ends[chunk] - len(rows), ends[chunk])
                places[index, 0], places[index, 1] = shard_index, starts[:-1]
                states[index] = [self._state(row) for row in rows]
        left_out = {chunk: size for chunk, size in left_out.items() if places[ends[chunk] - 1, 0] < 0}
        if left_out:
            logger.warning(
                "%s: %s of %s without all their rows are left out. Run the collection again to complete them.",
                self.path, counted(sum(left_out.values()), "row"), counted(len(left_out), "chunk"),
            )  # fmt: skip
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

    def labels(
        self,
        eta: float,
        estimator: str | None = None,
        *,
        min_question_rate: float = 0.0,
        relative: bool = False,
        error_tolerance: int | None = None,
        label_correct_solutions: str = "continuations",
        agree_with: Judge | None = None,
        agreement_tolerance: int = 0,
    ):
        r"""
        Computes soft step labels for any eta from the stored rewards, in TRL's stepwise format.

        The label of a step is the entropy-regularised value of the prefix that ends with it, estimated from the
        continuations of this prefix. The label of the last step is the reward of the solution itself.

        Args:
            eta (`float`):
                Inverse reward temperature. 0 gives Math-Shepherd's soft labels, `inf` its hard labels.
            estimator (`str`, *optional*):
                Estimator of the value. `"sample"` is the value of the rewards
                ([`~erprm_trl.functional.soft_value`]), which is too low on average for finite eta > 0. `"posterior"`
                is the posterior mean of the value ([`~erprm_trl.functional.posterior_value`]), with a prior that is
                fitted to the whole collection. It has neither this bias nor the bias of adaptive stopping, but needs
                rewards in [0, 1] and a finite eta. Defaults to `"posterior"` for adaptive collections at finite eta,
                else to `"sample"`.
            min_question_rate, relative, error_tolerance, label_correct_solutions, agree_with, agreement_tolerance:
                Options that make labels cleaner, see [`LabelOptions`]. The numbers of solutions and questions that
                they leave out are logged, and written to `labels/labels-<fingerprint>.json`.

        Returns:
            `datasets.Dataset`: the labels, stored in the subfolder `labels` (or in the cache of `datasets` if the
            folder cannot be written to), from where later calls read them. The columns are `prompt` (`str`),
            `completions` (`list[str]`, steps without delimiters) and `labels` (`list[float]`, one per step). With
            `"posterior"` there is also `label_std` (`list[float]`, the standard deviations of the labels, 0 for the
            last step). Solutions marked `unusable` are left out, and their number is logged.

        Raises:
            `ValueError`: if the rollouts were collected without continuations, eta is NaN, the estimator is unknown,
                `"posterior"` is used with an infinite eta, with rewards outside [0, 1] or with `relative`, or the
                options leave out every solution.
        """
        options = LabelOptions(
            min_question_rate=min_question_rate,
            relative=relative,
            error_tolerance=error_tolerance,
            label_correct_solutions=label_correct_solutions,
            agree_with=agree_with,
            agreement_tolerance=agreement_tolerance,
        )
        return self.label_source(eta, estimator, options).labels()

    def label_source(
        self, eta: float, estimator: str | None = None, options: LabelOptions | None = None
    ) -> LabelSource:
        """
        Prepares the labels of [`labels`] without computing them, so that a trainer can compute and encode them in one
        pass over the rows.

        This method runs the checks of [`labels`] that need no computation, and logs the number of solutions without
        labels.

        Args:
            eta, estimator:
                See [`labels`].
            options ([`LabelOptions`], *optional*):
                Options that make labels cleaner.

        Returns:
            [`LabelSource`]: the labels, not computed yet.
        """
        settings = self.settings
        if estimator is None:
            estimator = "posterior" if settings.is_adaptive and math.isfinite(eta) else "sample"
        if estimator not in ("sample", "posterior"):
            raise ValueError(
                f"estimator: got {estimator!r}, expected 'sample', 'posterior' or None. Pass one of these."
            )
        self._check_continuations()
        self.log_unusable()
        if estimator == "sample":
            sample_values([[0.0]], eta)  # raises for an invalid eta
        cache_dir = str(self.path / LABELS) if os.access(self.path, os.W_OK) else None
        cleaning, key = None, ""
        if options is not None and options != LabelOptions():
            options.check(estimator)
            cleaning, key = self._cleaning(options, eta, cache_dir)
        return LabelSource(
            _UsableRows(self.rows),
            settings.splitter,
            eta,
            estimator,
            # The key changes with the shards, and with the version of the code that computes labels.
            key=label_key(LABEL_VERSION, self._shards, estimator, eta, key),
            cache_dir=cache_dir,
            cleaning=cleaning,
        )

    def _cleaning(self, options: LabelOptions, eta: float, cache_dir: str | None) -> tuple[LabelCleaning, str]:
        """Combines options with the rates of questions and the judge, and returns the text that identifies them."""
        judge = options.agree_with
        verdicts = None if judge is None else JudgeVerdicts(judge, cache_dir, self.settings.splitter)
        cleaning = LabelCleaning(
            options=options,
            question_rates=self.question_rates,
            eta=eta,
            first_errors=None if judge is None else verdicts.first_errors,
            judge=None if judge is None else judge_name(judge),
        )
        return cleaning, repr(options.to_json(None if judge is None else judge_identity(judge)))

    def _check_continuations(self) -> None:
        # Opening the folder has read the state of every row, so no row is read again here.
        lacking = np.flatnonzero(self._states == _LACKS_CONTINUATIONS)
        if lacking.size:
            row = self.rows[int(lacking[0])]
            raise ValueError(
                f"{self.path}: {row.name} has {len(row.steps)} steps and rewards for {len(row.prefix_rewards)} "
                f"prefixes, expected rewards for {len(row.steps) - 1}. It was collected with num_continuations=0. "
                "Collect with num_continuations >= 1 to get labels."
            )

    def log_unusable(self) -> None:
        """Logs the number of solutions without labels, by reason."""
        unusable = Counter(self._states[self._states > _LACKS_CONTINUATIONS].tolist())
        if unusable:
            counts = {self._reasons[state - _LACKS_CONTINUATIONS - 1]: count for state, count in unusable.items()}
            shown = ", ".join(f"{count} with {reason}" for reason, count in sorted(counts.items()))
            logger.warning("%s: %d of %d solutions get no labels: %s.", self.path, unusable.total(), len(self), shown)

    def question_rates(self, eta: float = 0.0) -> np.ndarray:
        """Estimates how often the completer solves each question, see [`question_rates`]. The shape is
        (num_questions,), with NaN for questions without rewards."""
        return question_rates(self.rows, self.settings.num_questions, self.settings.continues_own_samples, eta)

    @classmethod
    def from_hub(
        cls, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
    ) -> "RolloutDataset":
        """
        Downloads rollouts that [`push_to_hub`] uploaded. Files in the cache are not downloaded again.

        Args:
            repo_id (`str`):
                Id of the dataset, as `"user/name"`.
            revision (`str`, *optional*):
                Branch, tag or commit.
            token (`str` or `bool`, *optional*):
                Access token. Defaults to the token of `hf auth login`.

        Returns:
            [`RolloutDataset`]: the rollouts.

        Raises:
            `FileNotFoundError`: if the dataset does not exist, or is not a rollout folder.
            `ValueError`: if its upload was interrupted.
        """
        rollouts = cls(download_rollouts(repo_id, revision=revision, token=token))
        rollouts._check_complete(repo_id)
        return rollouts

    def _check_complete(self, repo_id: str) -> None:
        expected = self.manifest.get("summary", {}).get("solutions", 0)
        if len(self) < expected:
            raise ValueError(
                f"{repo_id}: got {len(self)} of {expected} solutions, because its upload was interrupted, expected "
                "all solutions. Upload the rollouts again with push_to_hub, which sends only the missing files."
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ):
        """
        Uploads the rollouts as a dataset on the Hub, with a dataset card. [`from_hub`] and `datasets.load_dataset`
        read it.

        Secrets in the settings are left out, and absolute paths, such as the folder of the policy, are shortened to
        their last part. Texts of questions and solutions are not changed. If the upload is interrupted, the same call
        sends only the files that are missing. Rollouts that the dataset contained before are replaced.

        Args:
            repo_id (`str`):
                Id of the dataset, as `"user/name"`. It is created if it does not exist.
            private (`bool`, *optional*):
                Whether a new dataset is private. Defaults to the setting of the organization, or public.
            token (`str` or `bool`, *optional*):
                Access token. Defaults to the token of `hf auth login`.
            revision (`str`, *optional*):
                Branch, which is created if it does not exist. Defaults to the main branch.
            commit_message (`str`, *optional*):
                Message of the commit.

        Returns:
            `huggingface_hub.CommitInfo`: the commit.
        """
        return upload_rollouts(
            self.rows,
            self.manifest,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    def solutions(self) -> list[list[RolloutRow]]:
        """The rows grouped by question, as best-of-N needs them."""
        rows_of_question: dict[int, list[RolloutRow]] = {}
        for row in self.rows:
            rows_of_question.setdefault(row.question_index, []).append(row)
        return list(rows_of_question.values())


class _UsableRows:
    """The rows with labels. They can be iterated over several times."""

    def __init__(self, rows: RolloutRows):
        self._rows = rows

    def __iter__(self) -> Iterator[RolloutRow]:
        return (row for row in self._rows if row.is_usable)
