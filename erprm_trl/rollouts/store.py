"""Rollouts on disk: a manifest, one append-only shard of JSON lines a process, and the dataset that reads them back.

A chunk (a run of consecutive questions) is written by one call and is done if all its rows are there. What a crash
left of a chunk is cut off before the next one is appended; raw rewards are stored, labels never.
"""

import hashlib
import json
import logging
import math
import operator
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..functional import soft_values, value_uncertainty
from . import step_labels, steps
from .rows import RolloutRows
from .step_labels import PosteriorValues, sample_values
from .steps import clean_steps
from .whole_files import replace_file


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SHARD = "rollouts-{rank:05d}.jsonl"
LABELS = "labels"
LABEL_CODE = (__file__, *(module.__file__ for module in (steps, step_labels, soft_values, value_uncertainty)))
RESTORE = (
    "Restore it (the same command writes the same one at its start, into an empty folder), or choose another folder."
)


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
        features = {"prompt": Value("string"), "completions": List(Value("string")), "labels": List(Value("float64"))}
        if posterior is not None:
            features["label_std"] = List(Value("float64"))
        return Dataset.from_generator(
            lambda: self._examples(eta, posterior),
            features=Features(features),
            fingerprint=self._fingerprint(f"{estimator} {eta!r}"),
            cache_dir=str(self.path / LABELS) if os.access(self.path, os.W_OK) else None,
        )

    def _examples(self, eta: float, posterior: PosteriorValues | None) -> Iterator[dict[str, Any]]:
        splitter = self.manifest["config"]["splitter"]
        for row in self._usable_rows():
            example = {"prompt": row["question"], "completions": clean_steps(row["steps"], splitter)}
            outcome = float(row["outcome_reward"])
            if posterior is None:
                yield {**example, "labels": [*sample_values(row["prefix_rewards"], eta), outcome]}
            else:
                values = [*posterior(row["prefix_rewards"]), (outcome, 0.0)]
                yield {
                    **example,
                    "labels": [mean for mean, _ in values],
                    "label_std": [deviation for _, deviation in values],
                }

    def _usable_rows(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.rows if not row["unusable"])

    def _fingerprint(self, labels: str) -> str:
        """Of the labels' file: another one as soon as a shard was written to, or the code of labels was."""
        shards = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in self._shards]
        code = [Path(file).read_bytes() for file in LABEL_CODE]
        return hashlib.sha256(repr((code, shards, labels)).encode()).hexdigest()[:16]

    def _check_continuations(self) -> None:
        dropped = Counter()
        for row in self.rows:
            if row["unusable"]:
                dropped[row["unusable"]] += 1
            elif len(row["prefix_rewards"]) != len(row["steps"]) - 1:
                raise ValueError(
                    f"{self.path}: question {row['question_index']}, solution {row['solution_index']} has "
                    f"{len(row['steps'])} steps and "
                    f"rewards for {len(row['prefix_rewards'])} prefixes: it was collected with num_continuations=0. "
                    "Collect with "
                    "num_continuations >= 1 to get labels."
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


def chunk_sizes(config: dict[str, Any]) -> list[int]:
    """Rows of each chunk of a collection: questions of the chunk times solutions a question."""
    total, size = config["num_questions"], config["chunk_size"]
    return [min(size, total - start) * config["num_solutions"] for start in range(0, total, size)]


def shares_continuations(config: dict[str, Any]) -> bool:
    """Whether a collection's prefixes may have any number of continuations, some of them from other prefixes."""
    return "reuse_continuations" in config


def shard_paths(path: Path) -> list[Path]:
    """The shards of a folder, in the order of their processes."""
    return sorted(path.glob("rollouts-*.jsonl"))


def read_chunks(shard: Path, num_chunks: float = math.inf) -> Iterator[tuple[int, list[dict], list[int]]]:
    """
    Yields each chunk's number, its rows and the bytes at which they begin, the last of these the one at which the
    chunk ends. A last line without its newline is not read: it is half.

    Raises:
        `ValueError`: for a line that is whole and yet no row of one of `num_chunks` chunks.
    """
    rows: list[dict] = []
    starts = [0]
    with open(shard, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                chunk, _, _ = (operator.index(row[name]) for name in ("chunk", "question_index", "solution_index"))
                if not 0 <= chunk < num_chunks:
                    raise ValueError(f"chunk {chunk} of {num_chunks}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{shard}, line {number}: damaged ({error!r}), expected a row of rollouts. Cut the file off "
                    "before this line, or delete it and the other lines of its chunk: what is missing then is sampled "
                    "again by the next run."
                ) from error
            if rows and chunk != rows[-1]["chunk"]:
                yield rows[-1]["chunk"], rows, starts
                rows, starts = [], starts[-1:]
            rows.append(row)
            starts.append(starts[-1] + len(line))
    if rows:
        yield rows[-1]["chunk"], rows, starts


def repair_shard(shard: Path, rows_in_chunk: list[int]) -> set[int]:
    """Cuts off what a crash left unfinished at a shard's end and returns the numbers of the chunks that are done."""
    done: set[int] = set()
    end = 0
    unfinished = None
    for chunk, rows, starts in read_chunks(shard, len(rows_in_chunk)):
        if unfinished is not None:
            raise ValueError(
                f"{shard}: chunk {unfinished} is incomplete in the middle of the file: it belongs to another run or "
                "was edited. Move the "
                "file away: its questions are sampled again by the next run."
            )
        if len(rows) == rows_in_chunk[chunk]:
            done.add(chunk)
            end = starts[-1]
        else:
            unfinished = chunk
    size = shard.stat().st_size
    if end < size:
        logger.warning("%s: cutting off %d bytes of an unfinished chunk.", shard, size - end)
        os.truncate(shard, end)
    return done


def append_rows(file, rows: list[dict[str, Any]]) -> None:
    """Appends a chunk's rows by one write and waits until the disk has them."""
    # ASCII escapes: whatever a model writes (lone surrogates, line separators) stays one line and reads back the same.
    lines = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"))
    try:
        # Past the file's buffer, which would try again when it is closed.
        while lines:
            lines = lines[os.write(file.fileno(), lines) :]
        os.fsync(file.fileno())
    except OSError as error:
        what = f"{error.strerror}: a chunk could not be written, those before it are safe. Run the same command again"
        raise OSError(error.errno, what, file.name) from error


def read_manifest(path: Path, remedy: str = RESTORE) -> dict[str, Any] | None:
    """The folder's manifest, or `None` if it has none; `remedy` is what to do about a damaged one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest["config"]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST}: damaged ({error!r}). {remedy}") from error
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest in one move, so that a crash leaves the old one or the new one."""
    replace_file(path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
