"""Asks a judge for the first error of solutions, and keeps its verdicts in a file: no solution is judged twice."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..io.redaction import without_login
from ..steps import clean_steps
from .label_cleaning import NO_ERROR
from .label_options import Judge
from .records import RolloutRow


_WEIGHTS = ("*.safetensors", "*.bin", "*.json")


class JudgeVerdicts:
    """
    The first error of each solution according to a judge.

    Verdicts are appended to a JSON Lines file as soon as the judge has given them. An interrupted run, labels at
    another eta, and a collection that has grown ask only for the missing verdicts. The verdicts in the file are used
    again even if the judge is not deterministic. Processes that share the file ask one after the other.

    Args:
        judge ([`Judge`]):
            The judge.
        folder (`str` or `Path`, *optional*):
            Folder of the file. Defaults to the cache of `datasets`. The name of the file depends on
            [`judge_identity`].
        splitter (`str`):
            Splitter of the solutions.
    """

    def __init__(self, judge: Judge, folder: str | Path | None, splitter: str):
        from datasets import config

        self._judge, self._splitter = judge, splitter
        name = hashlib.sha256(judge_identity(judge).encode()).hexdigest()[:16]
        self.path = Path(folder or config.HF_DATASETS_CACHE) / f"verdicts-{name}.jsonl"
        self._known: dict[str, int | None] = {}  # verdicts in the file, up to the byte `_end`
        self._end = 0

    def first_errors(self, rows: Iterable[RolloutRow]) -> list[int | None]:
        """
        The first error of each row, counted from 0: -1 if every score is above 0.5, `None` if the judge could not read
        the solution or is undecided.

        Raises:
            `ValueError`: if the judge returns other scores than one in [0, 1] per step.
        """
        from filelock import FileLock

        solutions = [(row.question, clean_steps(row.steps, self._splitter)) for row in rows]
        keys = [hashlib.sha256(json.dumps(solution).encode()).hexdigest()[:32] for solution in solutions]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            is_cut = self._read()
            missing = {key: solution for key, solution in zip(keys, solutions, strict=True) if key not in self._known}
            if missing:
                new = dict(zip(missing, self._ask(list(missing.values())), strict=True))
                lines = [json.dumps({"solution": key, "first_error": verdict}) for key, verdict in new.items()]
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write("\n" * is_cut + "\n".join(lines) + "\n")
                self._known |= new
        return [self._known[key] for key in keys]

    def _read(self) -> bool:
        """Reads the verdicts that were appended since the last call. Returns whether the last line is cut, as after a
        crash."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._end)
                text = file.read()
        except FileNotFoundError:
            return False
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known.setdefault(entry["solution"], entry["first_error"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a crash has cut: its solution is judged again
        self._end += text.rfind(b"\n") + 1
        return bool(text) and not text.endswith(b"\n")

    def _ask(self, solutions: Sequence[tuple[str, list[str]]]) -> list[int | None]:
        questions, steps = [question for question, _ in solutions], [steps for _, steps in solutions]
        # A scorer that can skip solutions which exceed its context returns an empty list for them.
        can_skip = "skip_too_long" in inspect.signature(self._judge.score).parameters
        scores = self._judge.score(questions, steps, **({"skip_too_long": True} if can_skip else {}))
        if len(scores) != len(solutions):
            raise ValueError(
                f"agree_with: got {len(scores)} lists of scores for {len(solutions)} solutions, expected one per "
                "solution. Fix the judge's method `score`."
            )
        return [_first_error(scores_S, steps_S) for scores_S, steps_S in zip(scores, steps, strict=True)]


def judge_identity(judge: Judge) -> str:
    """
    Identifies a judge: its `model_name`, its `prm_format` if it has one, and the sizes and times of the model's files
    if the model, or the model of the judge's sampler, is in a local folder, because a model that is trained again in
    the same folder is another judge.

    Raises:
        `ValueError`: if the judge has no `model_name`.
    """
    name = getattr(judge, "model_name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"agree_with: got a {type(judge).__name__} without `model_name`, expected a text that identifies the "
            "judge, because its verdicts are cached. Pass a StepScorer, or give the class the attribute `model_name`."
        )
    sampler = getattr(getattr(judge, "backend", judge), "sampler", None)
    files = _files(name) if sampler is None else _files(str(sampler.settings.get("model", "")))
    return repr((without_login(name), repr(getattr(judge, "prm_format", None)), files))


def judge_name(judge: Judge) -> str:
    """Name of a judge for manifests, without a login and without the path to a local folder."""
    name = without_login(judge.model_name)
    return Path(name).name if Path(name).is_absolute() else name


def _files(name: str) -> list[tuple[Any, ...]]:
    folder = Path(name)
    try:
        files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)) if folder.is_dir() else []
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:  # a name that cannot be a path
        return []


def _first_error(scores: Sequence[float], steps: Sequence[str]) -> int | None:
    if not len(scores):
        return None
    if len(scores) != len(steps) or not all(0 <= score <= 1 for score in scores):
        raise ValueError(
            f"agree_with: got the scores {list(scores)} for a solution of {len(steps)} steps, expected one in [0, 1] "
            "per step. Fix the judge's method `score`."
        )
    first = next((step for step, score in enumerate(scores) if score <= 0.5), NO_ERROR)
    return None if first != NO_ERROR and scores[first] == 0.5 else first
