"""Questions with reference answers, from wherever they are kept. The first stage of a run: nothing is sampled here."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

from ..io.config_values import import_function
from ..io.on_disk_sequence import OnDiskSequence
from .grading.grader import extract_answer


QUESTION_COLUMNS = ("question", "problem", "prompt", "query", "instruction", "input")
_BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte order mark too
ANSWER_COLUMNS = ("answer", "final_answer", "reference_answer", "ground_truth", "solution")


class Question(NamedTuple):
    """
    A question and its reference answer (the final answer alone, e.g. `"18"`, not the worked solution), if known.

    `prompt` is what the policy reads where that is not the sampler's template around the question: a text, or a
    conversation.
    """

    question: str
    answer: str | None = None
    prompt: str | list[dict[str, str]] | None = None


class Questions(OnDiskSequence):
    """
    Questions as [`load_questions`] gives them: checked, and read from their rows each time they are asked for, so that
    those of a `datasets.Dataset` stay on the disk.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            A list, or a `datasets.Dataset`.
        name (`str`):
            Where the rows come from, for errors.
        question_column (`str`):
            Column of the question.
        answer_column (`str`, *optional*):
            Column of the reference answer; without it answers are `None`.
    """

    def __init__(self, rows, name: str, question_column: str, answer_column: str | None = None):
        self._rows, self._name = rows, name
        self._question_column, self._answer_column = question_column, answer_column

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Question]:
        return (self._question(index, row) for index, row in enumerate(self._rows))

    def _read(self, index: int) -> Question:
        return self._question(index, self._rows[index])

    def _question(self, index: int, row: Mapping[str, Any]) -> Question:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {index} of {self._name}: got {str(row)[:80]!r} ({type(row).__name__}), expected a mapping of "
                "columns to values. Drop the row."
            )
        question = _question_text(row.get(self._question_column), index, self._question_column)
        if self._answer_column is None:
            return Question(question)
        answer = row.get(self._answer_column)
        # NaN is what tables hold where an answer is missing; a list or a mapping would be graded by its brackets.
        if not isinstance(answer, (str, Number)) or answer != answer or not _is_text(str(answer)):
            raise ValueError(
                f"Row {index} of {self._name}: column {self._answer_column!r} holds no reference answer (got "
                f"{str(answer)[:80]!r}, {type(answer).__name__}, expected a text or a number). Rollouts are graded "
                "against it: fill it in, drop the row, or name another column with `answer_column`."
            )
        answer = str(answer)
        return Question(question, (extract_answer(answer) or answer).strip())


def load_questions(
    source: str | Iterable[Mapping[str, Any]],
    *,
    config_name: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    answer_column: str | None = None,
    max_questions: int | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
    require_answers: bool = True,
) -> Questions:
    r"""
    Loads questions and recognises the final answer in each reference.

    Args:
        source (`str` or iterable of mappings):
            A dataset id on the Hub, a local `.jsonl`, `.json` or `.parquet` file, a folder written by
            `Dataset.save_to_disk`, a function as `"package.module:function"` that returns rows, or the rows themselves
            (a list or a `datasets.Dataset`).
        config_name (`str`, *optional*):
            Configuration of a Hub dataset, e.g. `"main"` for GSM8K.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset.
        question_column, answer_column (`str`, *optional*):
            Columns to read; guessed from the usual names (`question`, `problem`, ...; `answer`, `solution`, ...) if
            not given.
        max_questions (`int`, *optional*):
            Takes the first rows only.
        dataset_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for `datasets.load_dataset` or for the function.
        require_answers (`bool`, *optional*, defaults to `True`):
            If `False`, rows without any answer column give questions whose answer is `None`.

    Returns:
        [`Questions`]: in the source's order, a sequence of [`Question`]. GSM8K references (`... #### 18`) and MATH
        references (`... \boxed{18}`) are reduced to the final answer; others are taken whole.

    Raises:
        `ValueError`: if there are no rows, no such column, or a row has an empty question or no reference answer.
    """
    rows = _read_rows(source, config_name, split, dataset_kwargs or {})
    is_table = hasattr(rows, "select_columns")  # of `datasets`: its rows stay on the disk
    rows = rows.with_format(None) if is_table else list(rows)
    name = source if isinstance(source, str) else "the given rows"
    if not len(rows):
        raise ValueError(f"Questions: got no rows from {name}, expected at least one.")
    if not isinstance(rows[0], Mapping):
        raise ValueError(
            f"Questions: got {str(rows[0])[:80]!r} as the first row of {name}, expected a mapping of columns to "
            "values, such as {'question': ..., 'answer': ...}."
        )
    question_column = _find_column(rows[0], question_column, QUESTION_COLUMNS, "question_column", name)
    if require_answers or answer_column is not None or any(column in rows[0] for column in ANSWER_COLUMNS):
        answer_column = _find_column(rows[0], answer_column, ANSWER_COLUMNS, "answer_column", name)
    if is_table:
        rows = rows.select_columns([question_column, *([answer_column] if answer_column else [])])
        rows = rows.select(range(len(rows))[:max_questions])
    else:
        rows = rows[:max_questions]
    questions = Questions(rows, name, question_column, answer_column)
    for _ in questions:  # all are read once: a row that cannot be used is an error now, not after hours of sampling
        pass
    return questions


def fingerprint(questions: Iterable[Question]) -> str:
    """A hash of all questions, answers and prompts in order: what makes two collections the same work."""
    digest = hashlib.sha256()
    for question in questions:
        # Without a prompt as before there were any: old folders have to be recognised.
        digest.update(json.dumps(question[:2] if question.prompt is None else question).encode() + b"\n")
    return digest.hexdigest()[:16]


def _read_rows(source, config_name: str | None, split: str, dataset_kwargs: dict[str, Any]) -> Iterable[Mapping]:
    if not isinstance(source, str):
        return source
    from datasets import load_dataset, load_from_disk

    suffix = Path(source).suffix
    if suffix in (".jsonl", ".json", ".parquet"):
        if not Path(source).is_file():
            raise ValueError(f"Questions: no file at {source!r}. Give an existing .jsonl, .json or .parquet file.")
        return _read_table(source)
    if Path(source).is_dir():
        return load_from_disk(source)
    if ":" in source:
        return import_function(source)(**dataset_kwargs)
    return load_dataset(source, config_name, split=split, **dataset_kwargs)


def _read_table(path: str):
    """The rows of a file, on the disk."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    try:
        if path.endswith(".parquet"):
            return Dataset.from_parquet(path)
        return Dataset.from_json(path) if _count_rows(path) else []
    except (DatasetGenerationError, ArrowInvalid) as error:
        raise ValueError(
            f"Questions: {path} is no table ({error.__cause__ or error}). Expected rows of the same columns, "
            "each named once, in Unicode text."
        ) from error


def _count_rows(path: str) -> int:
    """Rows of a file of JSON, read before `datasets` does: that names no line, rounds integers of more than 64 bits
    and ends the process at a line `null`."""
    with open(path, "rb") as file:
        whole = _is_one_value(path, file.read(1024))
        file.seek(0)
        number_of_rows = 0
        for line_number, text in enumerate([file.read()] if whole else file, start=1):
            if not text.strip(_BLANK):
                continue
            try:
                value = json.loads(text.decode("utf-8-sig"), parse_int=_exact_int)
                rows = value if whole and isinstance(value, list) else [value]
                if not all(isinstance(row, dict) for row in rows):
                    raise ValueError("a row that is no JSON object")
            except (ValueError, RecursionError) as error:
                where = path if whole else f"{path}, line {line_number}"
                raise ValueError(
                    f"Questions: {where}: {error}. Expected JSON objects in UTF-8, one a line or all in one list."
                ) from None
            number_of_rows += len(rows)
    return number_of_rows


def _is_one_value(path: str, start: bytes) -> bool:
    # A list, or one object over several lines.
    first_line = start.lstrip(_BLANK).split(b"\n")[0].strip()
    return first_line.startswith(b"[") or (path.endswith(".json") and first_line == b"{")


def _exact_int(digits: str) -> int:
    if len(digits) > 18 and not -(2**63) <= int(digits[:21]) < 2**63:
        raise ValueError(f"the integer {digits[:40]} has more than 64 bits and would be rounded: write it in quotes")
    return 0  # nobody reads it


def _find_column(row: Mapping, column_name: str | None, usual: tuple[str, ...], argument: str, name: str) -> str:
    candidates = (column_name,) if column_name else usual
    for column in candidates:
        if column in row:
            return column
    raise ValueError(
        f"Columns of {name}: got {sorted(map(str, row))}, expected {' or '.join(map(repr, candidates))}. Name the "
        f"right one with `{argument}`."
    )


def _question_text(value: Any, index: int, column: str) -> str:
    # TRL's conversational prompts: one user message is a question, anything longer is not.
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not _is_text(value):
        raise ValueError(
            f"Row {index}: column {column!r} got {str(value)[:80]!r}, expected a non-empty string of Unicode text, or "
            "a list of one user message. Drop the row or name another column with `question_column`."
        )
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is text with something in it that every tokenizer takes: JSON can say half of a character."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
