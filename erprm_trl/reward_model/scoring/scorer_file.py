"""Scorer files: YAML files that stand for a scorer without a reward model, in place of a reward model's path.

Every function and command that takes a reward model takes a scorer file. The file names the scorer and its arguments.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.config_values import is_url
from ...io.paths import local_path, path_in_package
from ...io.redaction import redacted
from ...rollouts.questions import Question, load_questions
from ...rollouts.sampling.loading import check_sampler_settings, load_sampler
from ..prm_format import PRMFormat
from .backend import ScoringBackend
from .judge import JudgeScorer, default_prompt
from .monte_carlo import POLICY, MonteCarloScorer, eta_of_scores


SCORERS: dict[str, type] = {"monte_carlo": MonteCarloScorer, "judge": JudgeScorer}
FORMAT_FIELDS = ("splitter", "steps_of", "aggregation")
# Settings of `answers`, with the names of a collection, and the parameters of `load_questions`.
QUESTION_SETTINGS = {
    "dataset_name": "source",
    "dataset_config": "config_name",
    "dataset_split": "split",
    "dataset_kwargs": "dataset_kwargs",
    "question_column": "question_column",
    "answer_column": "answer_column",
    "max_questions": "max_questions",
}


def is_scorer_file(path_or_id: Any) -> bool:
    """Whether a reward model is given by a scorer file, i.e. by a path that ends with `.yaml` or `.yml`."""
    return (
        isinstance(path_or_id, (str, os.PathLike))
        and not is_url(path_or_id)
        and Path(path_or_id).suffix in (".yaml", ".yml")
    )


def load_scorer_file(path: str | os.PathLike) -> ScoringBackend:
    """
    Loads the scorer that a file describes, with its sampler.

    Args:
        path (`str` or `PathLike`):
            A YAML file. Its key `scorer` is `monte_carlo` or `judge`. Its key `sampler` is a mapping with the settings
            of [`~erprm_trl.rollouts.sampling.load_sampler`], or `policy` for the policy that a step trainer trains
            (`monte_carlo` only, without `answers`). The other keys are arguments of [`MonteCarloScorer`] or
            [`JudgeScorer`]. `answers` is a source of questions, or a mapping with the settings `dataset_name`,
            `dataset_config`, `dataset_split`, `dataset_kwargs`, `question_column`, `answer_column` and
            `max_questions` of a collection, or a list of these.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if the file is not YAML, or for an unknown, missing or invalid setting.
    """
    kind, settings = _read(path)
    sampler = settings.pop("sampler")
    if sampler == POLICY:
        return SCORERS[kind](sampler, **settings)
    sampler = load_sampler(sampler)
    if kind == "monte_carlo":
        settings["answers"] = _load_answers(settings["answers"])
    return SCORERS[kind](sampler, **settings)


def samples_policy(path: str | os.PathLike) -> bool:
    """Whether the scorer that a file describes samples from the policy that a step trainer trains."""
    return _read(path)[1]["sampler"] == POLICY


def scorer_file_format(path: str | os.PathLike) -> PRMFormat:
    """The format of the scorer that a file describes. No sampler is loaded. See [`load_scorer_file`]."""
    kind, settings = _read(path)
    eta = None if kind == "judge" else eta_of_scores(settings.get("grading", "math"), settings.get("eta", 0.0))
    fields = {name: settings[name] for name in FORMAT_FIELDS if name in settings}
    if settings["sampler"] == POLICY:
        fields = {"aggregation": "last", **fields}
    return PRMFormat(**fields, eta=eta)


def scorer_file_identity(path: str | os.PathLike) -> dict[str, Any]:
    """
    All settings of the scorer that a file describes, including defaults, as JSON values.

    Scores of a file with the same identity are the same. Secrets are masked, and `digest` is a hash of the settings
    without a mask. The times and sizes of the local files that the settings name are included.
    """
    kind, settings = _read(path)
    parameters = list(inspect.signature(SCORERS[kind].__init__).parameters.values())[2:]  # without self and sampler
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name != "answers"}
    settings = {"scorer": kind, **defaults, **settings}
    if kind == "monte_carlo" and settings["sampler"] != POLICY:  # the defaults with a sampler
        usual = {"grading": "math", "aggregation": "min"}
        settings |= {name: value for name, value in usual.items() if settings[name] is None}
    if kind == "judge" and settings["prompt"] is None:
        settings["prompt"] = default_prompt(settings["verdict_tokens"])
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        **redacted(json.loads(text)),
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "local_files": _local_files(settings),
    }


def _read(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """The kind of scorer and its other settings, checked."""
    import yaml

    file = Path(local_path(path))
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: got no file, expected a scorer file. Correct the path, or pass a folder or Hub id."
        )
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: got a file that is not YAML ({error}), expected a scorer file. Correct it."
        ) from error
    kind = settings.get("scorer") if isinstance(settings, dict) else type(settings).__name__
    if not isinstance(settings, dict) or not isinstance(kind, str) or kind not in SCORERS:
        raise ValueError(
            f"{path}: got scorer={kind!r}, expected one of {', '.join(SCORERS)}. Write a line such as "
            "'scorer: monte_carlo'."
        )
    del settings["scorer"]
    parameters = list(inspect.signature(SCORERS[kind].__init__).parameters)[1:]
    unknown = [name for name in settings if name not in parameters]
    if unknown:
        raise ValueError(
            f"{path}: got the settings {', '.join(map(repr, unknown))}, expected settings from "
            f"{', '.join(parameters)}. Correct or remove them."
        )
    of_policy = kind == "monte_carlo" and settings.get("sampler") == POLICY
    for name in ("sampler", *(["answers"] if kind == "monte_carlo" and not of_policy else [])):
        if name not in settings:
            raise ValueError(f"{path}: got no {name}, expected it for scorer={kind!r}. Add it to the file.")
    if isinstance(settings.get("eta"), str):  # YAML reads `inf` as a text
        settings["eta"] = _number(path, "eta", settings["eta"])
    try:
        if not of_policy:
            check_sampler_settings(settings["sampler"])
        if kind == "monte_carlo" and not of_policy:
            _question_sources(settings["answers"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return kind, settings


def _number(path: str | os.PathLike, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: got {name}={text!r}, expected a number, or inf. Correct it.") from None


def _question_sources(answers: Any) -> list[dict[str, Any]]:
    """The arguments of `load_questions` for each source."""
    sources = []
    for source in answers if isinstance(answers, list) else [answers]:
        source = {"dataset_name": source} if isinstance(source, str) else source
        names = source if isinstance(source, Mapping) else {}
        if "dataset_name" not in names or not set(names) <= set(QUESTION_SETTINGS):
            raise ValueError(
                f"answers: got {str(source)[:120]!r}, expected a file, a dataset, or a mapping with dataset_name and "
                f"settings from {', '.join(QUESTION_SETTINGS)}. Correct the entry."
            )
        sources.append({QUESTION_SETTINGS[name]: value for name, value in source.items()})
    return sources


def _load_answers(answers: Any) -> list[Question]:
    sources = _question_sources(answers)
    return [
        question for source in sources for question in load_questions(path_in_package(source.pop("source")), **source)
    ]


def _local_files(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """Size and modification time of the model's and the questions' files, if they are local."""
    places: list[Any] = [] if settings["sampler"] == POLICY else [settings["sampler"].get("model_name_or_path")]
    if "answers" in settings:
        places += [source["source"] for source in _question_sources(settings["answers"])]
    stats = {}
    for index, place in enumerate(places):
        path = Path(local_path(path_in_package(str(place))))
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
        stats |= {f"{index}/{file.name}": [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return stats
