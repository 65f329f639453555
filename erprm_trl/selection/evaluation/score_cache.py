"""Caches the step scores of judged solutions in a file, so that an interrupted run loses only the current chunk."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...io.atomic_files import replace_file
from ...io.config_values import is_url
from ...io.paths import local_path
from ...io.redaction import without_login
from ...io.text_lists import check_text_lists
from ...reward_model.scoring.scorer import StepScorer
from ...reward_model.scoring.scorer_file import is_scorer_file, scorer_file_identity
from .processbench import JudgedSolution


SCORES_FILE = "step_scores.json"
SAME = 0.02  # scores of the same model differ by less on other devices and in bfloat16
_WEIGHTS = ("*.safetensors", "*.bin", "prm_format.json")


def score_judged(
    reward_model: str | Path,
    solutions: Iterable[JudgedSolution],
    folder: str | Path,
    *,
    batch_size: int = 32,
    chunk_size: int = 256,
    eta: float | None = None,
    trained_eta: float | None = None,
    backend: str = "local",
) -> dict[JudgedSolution, list[float]]:
    """
    Scores the steps of judged solutions. Scores from an earlier run are read from its file.

    Args:
        reward_model (`str` or `Path`):
            Folder, Hub id, scoring server or scorer file. It is only loaded if there are solutions to score.
        solutions (`Iterable[JudgedSolution]`):
            Solutions in any order. Solutions with equal problem and steps are scored once.
        folder (`str` or `Path`):
            Folder of `step_scores.json`. The file is replaced atomically after each chunk.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of solutions per batch.
        chunk_size (`int`, *optional*, defaults to `256`):
            Number of solutions between two writes of the file.
        eta, trained_eta (`float`, *optional*):
            Eta at which the scores are read, and eta of the labels of a model whose format does not record it, see
            [`~erprm_trl.reward_model.StepScorer.from_pretrained`].
        backend (`str`, *optional*, defaults to `"local"`):
            How a model in a folder or on the Hub is run, see
            [`~erprm_trl.reward_model.StepScorer.from_pretrained`].

    Returns:
        `dict[JudgedSolution, list[float]]`: one score per step. A solution longer than the model's context has an
        empty list.

    Raises:
        `ValueError`: if the file is damaged, or if it holds the scores of another model, of other weights, or at
            another eta.
    """
    solutions = list(solutions)
    check_text_lists("steps of the solutions", [solution.steps for solution in solutions])
    folder, reward_model = Path(local_path(folder)), local_path(reward_model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SCORES_FILE
    etas = {"eta": eta, "trained_eta": trained_eta}
    identity = reward_model_identity(reward_model, **etas)
    scores = _read_scores(path, identity)
    keys = {solution: _key(solution) for solution in solutions}
    todo = list({key: solution for solution, key in keys.items() if key not in scores}.items())
    if todo:
        scorer = StepScorer.from_pretrained(reward_model, batch_size=batch_size, backend=backend, **etas)
        held = next((solution for solution, key in keys.items() if scores.get(key)), None)
        if held is not None and is_url(reward_model):
            check_same_scores(scorer, held.problem, list(held.steps), scores[keys[held]], path)
        for start in range(0, len(todo), chunk_size):
            chunk = todo[start : start + chunk_size]
            problems = [solution.problem for _, solution in chunk]
            steps = [list(solution.steps) for _, solution in chunk]
            new = scorer.score(problems, steps, skip_too_long=True)
            scores.update(zip((key for key, _ in chunk), new, strict=True))
            replace_file(path, json.dumps({**identity, "scores": scores}))
    return {solution: scores[key] for solution, key in keys.items()}


def reward_model_identity(reward_model: str, **etas: float | None) -> dict[str, Any]:
    """Name of a reward model, the sizes and times of its files or the settings of a scorer file, and the etas that are
    set: scores are only continued with the same model and settings at the same eta."""
    files = scorer_file_identity(reward_model) if is_scorer_file(reward_model) else _files(reward_model)
    read_at = {name: eta for name, eta in etas.items() if eta is not None}
    return {"reward_model": without_login(reward_model), "files": files, **read_at}


def check_same_scores(scorer: StepScorer, question: str, steps: list[str], held: list[float], path: Path) -> None:
    """
    Checks that a server still gives the scores that a file holds. Nothing else tells whether it serves another model.

    Args:
        scorer ([`StepScorer`]):
            Scorer of the server.
        question (`str`), steps (`list[str]`), held (`list[float]`):
            A solution in the file, and its scores.
        path (`Path`):
            The file, for the error.

    Raises:
        `ValueError`: if a score differs by more than 0.02, which is more than the rounding of bfloat16.
    """
    (now,) = scorer.score([question], [steps], skip_too_long=True)
    if len(now) != len(held) or any(abs(new - old) > SAME for new, old in zip(now, held, strict=True)):
        raise ValueError(
            f"{path}: got the scores {held[:8]} for a solution that the server now scores with {now[:8]}, expected "
            "the same model on the server. Start the server with that model, choose another folder, or delete the "
            "file to score again."
        )


def _read_scores(path: Path, identity: dict[str, Any]) -> dict[str, list[float]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        scores = held.pop("scores")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, AttributeError) as error:
        message = f"{path}: got a damaged file ({error!r}), expected step scores. Delete the file to score again."
        raise ValueError(message) from error
    if held != identity:
        raise ValueError(
            f"{path}: got scores of {_described(held)}, expected scores of {_described(identity)}. Choose another "
            "folder, or delete the file to score again."
        )
    return scores


def _described(identity: dict[str, Any]) -> str:
    etas = [f"{name}={identity[name]}" for name in ("eta", "trained_eta") if name in identity]
    return ", ".join([f"{identity.get('reward_model')!r} with files {identity.get('files')}", *etas])


def _files(reward_model: str) -> dict[str, list[int]]:
    """Size and modification time of a local model's files, which tell a newly trained model in the same folder from
    the old one."""
    files = (file for pattern in _WEIGHTS for file in sorted(Path(reward_model).glob(pattern)))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _key(solution: JudgedSolution) -> str:
    return hashlib.sha256(json.dumps([solution.problem, solution.steps]).encode()).hexdigest()[:32]
