"""The rollouts of a folder as a dataset: rows, solutions by question, and soft step labels for any eta.

Raw rewards are what a folder holds; labels are computed from them when they are asked for, and cached.
"""

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .labels import LABEL_VERSION, PosteriorValues, labelled_example, sample_values
from .shards import MANIFEST, RolloutRows, chunk_sizes, read_chunks, read_manifest, shard_paths


logger = logging.getLogger(__name__)

LABELS = "labels"


class RolloutDataset:
    """
    The rollouts of a folder that [`collect_rollouts`] wrote, in the questions' order whatever processes sampled them.

    Args:
        path (`str` or `Path`):
            The folder.

    Attributes:
        rows (`Sequence[dict]`): one a solution, read from the disk when it is asked for: `question_index`,
            `solution_index`, `question`, `answer`, `steps` (joined they are the solution, byte for byte),
            `outcome_reward`, `prediction` (the final answer found, or `None`), `finished`,
            `num_tokens`, `prefix_rewards` (S - 1 lists of raw rewards: K each, or any number in adaptive collections
            and those that reuse continuations), `question_rewards` (likewise for the bare question, or `None`),
            `unusable` (the reason why the solution has no labels, or `None`), `sampler`. Where numbers differ also
            `prefix_generated` (S - 1 counts): so many of a prefix's rewards, the first ones, were sampled for it; 0
            where an earlier solution has the same prefix and shares its rewards.
        manifest (`dict`): settings, versions, and counts of what was kept and dropped.

    Raises:
        `FileNotFoundError`: if the folder holds no manifest.
        `ValueError`: if a shard is damaged (file, line and remedy are named).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        if self.manifest is None:
            raise FileNotFoundError(
                f"No {MANIFEST} in {self.path}: not a folder of rollouts. Run recipes/collect_rollouts.py."
            )
        self._shards = shard_paths(self.path)
        self.rows = RolloutRows(self._shards, self._places())

    def _places(self) -> np.ndarray:
        """Where the rows of whole chunks begin, in the questions' order: 16 bytes a row are all that is kept."""
        config = self.manifest["config"]
        rows_in_chunk = chunk_sizes(config)
        places = np.full((config["num_questions"] * config["num_solutions"], 2), -1)
        for number, shard in enumerate(self._shards):
            for chunk, rows, starts in read_chunks(shard, len(rows_in_chunk)):
                if len(rows) == rows_in_chunk[chunk]:
                    for row, start in zip(rows, starts, strict=False):  # the last one is the chunk's end
                        index = row["question_index"] * config["num_solutions"] + row["solution_index"]
                        places[index] = number, start
        return places[places[:, 0] >= 0]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
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
        from datasets import Dataset, Features, List, Value

        if estimator is None:
            adaptive = self.manifest["config"].get("allocation") == "adaptive" and math.isfinite(eta)
            estimator = "posterior" if adaptive else "sample"
        if estimator not in ("sample", "posterior"):
            raise ValueError(f"estimator: got {estimator!r}, expected 'sample', 'posterior' or None.")
        self._check_continuations()
        posterior = None
        if estimator == "posterior":
            posterior = PosteriorValues.fit(self._usable_rows(), eta)
        else:
            sample_values([[0.0]], eta)  # what is wrong with eta is said here, before `datasets` writes
        splitter = self.manifest["config"]["splitter"]
        features = {"prompt": Value("string"), "completions": List(Value("string")), "labels": List(Value("float64"))}
        if posterior is not None:
            features["label_std"] = List(Value("float64"))
        return Dataset.from_generator(
            lambda: (labelled_example(row, splitter, eta, posterior) for row in self._usable_rows()),
            features=Features(features),
            fingerprint=self._fingerprint(f"{estimator} {eta!r}"),
            cache_dir=str(self.path / LABELS) if os.access(self.path, os.W_OK) else None,
        )

    def _usable_rows(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.rows if not row["unusable"])

    def _fingerprint(self, labels: str) -> str:
        """Names the cached labels: another name as soon as a shard changes, or the code that makes labels does."""
        shards = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in self._shards]
        return hashlib.sha256(repr((LABEL_VERSION, shards, labels)).encode()).hexdigest()[:16]

    def _check_continuations(self) -> None:
        dropped = Counter()
        for row in self.rows:
            if row["unusable"]:
                dropped[row["unusable"]] += 1
            elif len(row["prefix_rewards"]) != len(row["steps"]) - 1:
                raise ValueError(
                    f"{self.path}: question {row['question_index']}, solution {row['solution_index']} has "
                    f"{len(row['steps'])} steps and rewards for {len(row['prefix_rewards'])} prefixes: it was "
                    "collected with num_continuations=0. Collect with num_continuations >= 1 to get labels."
                )
        if dropped:
            reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(dropped.items()))
            logger.warning("%s: %d of %d solutions get no labels: %s.", self.path, dropped.total(), len(self), reasons)

    def solutions(self) -> list[list[dict[str, Any]]]:
        """The rows grouped by question: what best-of-N chooses from."""
        groups: dict[int, list[dict]] = {}
        for row in self.rows:
            groups.setdefault(row["question_index"], []).append(row)
        return list(groups.values())
