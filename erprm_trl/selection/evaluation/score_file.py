"""Scores the solutions of a dataset row by row into a JSONL file. A killed run resumes at its current chunk."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...io.atomic_files import make_folder, only_writer, replace_file
from ...io.config_values import differences, is_url
from ...io.paths import local_path
from ...reward_model.scoring.scorer import StepScorer, solution_scores
from ...rollouts.given_solutions import STEPS_COLUMNS, TEXT_COLUMNS
from ...rollouts.questions import QUESTION_COLUMNS, find_column
from .score_cache import check_same_scores, reward_model_identity


SOLUTION_COLUMNS = (*STEPS_COLUMNS, "completions", *TEXT_COLUMNS)  # "completions" are steps in TRL's stepwise form
ROWS_FILE, SETTINGS_FILE = "scores.jsonl", "score_settings.json"
ADDED = ("steps", "step_scores", "score")  # columns of the results
GIVEN = "given_"  # before the name of a column of the rows that a column of the results would replace


def score_rows(
    reward_model: str | Path,
    rows: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    question_column: str | None = None,
    solution_column: str | None = None,
    aggregation: str | None = None,
    chunk_size: int = 256,
    on_chunk: Callable[[int, float], None] | None = None,
    **scorer_options: Any,
) -> Iterator[dict[str, Any]]:
    """
    Scores the solution of each row, and writes `scores.jsonl` with the rows in the same order.

    Args:
        reward_model (`str` or `Path`):
            Folder, Hub id, scoring server or scorer file. It is loaded only if something is left to score.
        rows (`Iterable[Mapping]`):
            Rows with a question and a solution. A question is a text, or a conversation with one user message. A
            solution is a list of steps, or a text or a conversation with one assistant message, which the reward
            model's format splits into steps.
        folder (`str` or `Path`):
            Folder of `scores.jsonl`. If the file is there, its rows are checked against the given rows and kept.
        question_column, solution_column (`str`, *optional*):
            Columns to read. They default to the first columns with usual names.
        aggregation (`str`, *optional*):
            `"min"`, `"last"`, `"product"` or `"mean"` of the step scores. Defaults to the reward model's.
        chunk_size (`int`, *optional*, defaults to `256`):
            Number of rows between two writes.
        on_chunk (`Callable[[int, float], None]`, *optional*):
            Function to call after each chunk, with its number of solutions and the seconds that scoring took.
        scorer_options:
            Further arguments of [`StepScorer.from_pretrained`], such as `eta`.

    Yields:
        `dict`: each row with `steps`, `step_scores` and `score`. If a solution has no steps or is longer than the
        model's context, `step_scores` is empty and `score` is `None`. A column of the rows with one of these names and
        another value is kept as `given_steps`, `given_step_scores` or `given_score`.

    Raises:
        `ValueError`: if a row has no question or no solution, or the folder holds the scores of other rows, of another
            reward model, or with other settings.
        `RuntimeError`: if another run writes into the folder.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ValueError("Solutions: got no rows, expected at least one. Check the dataset and its split.")
    columns = (
        find_column(first, question_column, QUESTION_COLUMNS, "question_column", "the solutions"),
        find_column(first, solution_column, SOLUTION_COLUMNS, "solution_column", "the solutions"),
    )
    folder = make_folder(folder)
    path = folder / ROWS_FILE
    settings = {"aggregation": aggregation, "columns": list(columns), "prm_format": scorer_options.get("prm_format")}
    etas = {name: scorer_options.get(name) for name in ("eta", "trained_eta")}
    rows = enumerate(chain([first], rows))
    with only_writer(path, "scoring"):
        _check_settings(folder, {**reward_model_identity(local_path(reward_model), **etas), **settings})
        held = None
        for written in _written_rows(path, rows):
            held = written if written["step_scores"] else held
            yield written
        scorer = None
        while chunk := list(islice(rows, chunk_size)):
            if scorer is None:
                scorer = StepScorer.from_pretrained(reward_model, **scorer_options)
                if held is not None and is_url(reward_model):
                    question = _message(held[columns[0]], "user")
                    check_same_scores(scorer, question, held["steps"], held["step_scores"], path)
            scored = _scored(scorer, chunk, columns, aggregation, on_chunk)
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, default=_plain_or_text) + "\n" for row in scored)
                file.flush()
                os.fsync(file.fileno())
            yield from scored


def _scored(
    scorer: StepScorer,
    chunk: Sequence[tuple[int, Mapping]],
    columns: Sequence[str],
    aggregation: str | None,
    on_chunk: Callable[[int, float], None] | None,
) -> list[dict[str, Any]]:
    """The rows of a chunk with their scores."""
    texts = [_texts(index, row, *columns) for index, row in chunk]
    questions = [question for question, _ in texts]
    split = iter(scorer.split_texts([solution for _, solution in texts if isinstance(solution, str)]))
    steps = [next(split) if isinstance(solution, str) else solution for _, solution in texts]
    started = time.perf_counter()
    step_scores = scorer.score(questions, steps, skip_too_long=True)
    if on_chunk is not None:
        on_chunk(len(chunk), time.perf_counter() - started)
    totals = solution_scores(step_scores, aggregation or scorer.prm_format.aggregation)
    scored = []
    for (_, row), *values in zip(chunk, steps, step_scores, totals, strict=True):
        added = dict(zip(ADDED, values, strict=True))
        given = {
            f"{GIVEN}{name}" if name in added and _json(value) != _json(added[name]) else name: value
            for name, value in row.items()
        }
        scored.append({**given, **added})
    return scored


def _written_rows(path: Path, rows: Iterator[tuple[int, Mapping]]) -> Iterator[dict]:
    """Rows that an earlier run has written. A last line that was cut off is removed."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            _, row = next(rows, (None, None))
            try:
                written = json.loads(line)
                problem = "holds a row after the last given row" if row is None else _difference(written, row)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problem = f"is damaged ({error!r})"
            if problem:
                raise ValueError(
                    f"{path}, line {number}: {problem}, expected the scores of the given rows. Choose another folder, "
                    "or delete the file to score again."
                )
            yield written
        file.truncate(end)


def _difference(written: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """The first column of a given row that has another value in the written row."""
    for name, value in row.items():
        held = written.get(name)
        if name in ADDED:
            held = written.get(f"{GIVEN}{name}", held)
        if _json(value) not in (_json(held), None):
            return f"holds {str(held)[:80]!r} in column {name!r}, and the given row has {str(value)[:80]!r}"
    if len(written["steps"]) != len(written["step_scores"]) and written["step_scores"]:
        return "holds another number of scores than of steps"
    return None


def _json(value: Any) -> str | None:
    """The JSON of a value. It is `None` if the text of the value may differ in each run, as that of an image."""
    try:
        return json.dumps(value, default=_plain)
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    """Lists and numbers for arrays and numbers of NumPy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _plain_or_text(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compares the settings of the scores that the folder holds. Without scores, the settings are written."""
    path = folder / SETTINGS_FILE
    if not (folder / ROWS_FILE).exists():
        replace_file(path, json.dumps(settings, indent=2))
        return
    try:
        written = dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: got no settings ({error!r}) of the scores in {ROWS_FILE}, expected those that were written with "
            "them. Choose another folder, or delete this one to score again."
        ) from error
    if changed := differences(written, settings):
        raise ValueError(
            f"{path}: got scores with other settings ({'; '.join(changed)}), expected the settings of this "
            "call. Choose another folder, or delete this one to score again."
        )


def _texts(index: int, row: Mapping, question_column: str, solution_column: str) -> tuple[str, str | list[str]]:
    question = _message(row.get(question_column), "user")
    solution = _message(row.get(solution_column), "assistant")
    is_steps = isinstance(solution, list) and all(isinstance(step, str) for step in solution)
    for argument, column, value, fits in (
        ("question_column", question_column, question, isinstance(question, str)),
        ("solution_column", solution_column, solution, isinstance(solution, str) or is_steps),
    ):
        if not fits:
            raise ValueError(
                f"Row {index}: column {column!r} is {str(value)[:80]!r} ({type(value).__name__}), expected a text"
                f"{' or a list of steps' if column == solution_column else ''}, or a conversation with one message. "
                f"Drop the row, or name another column with `{argument}`."
            )
    return question, solution


def _message(value: Any, role: str) -> Any:
    """The text of the only message of a role in a conversation. Other values as they are."""
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        texts = [message.get("content") for message in value if message.get("role") == role]
        return texts[0] if len(texts) == 1 else value
    return value
