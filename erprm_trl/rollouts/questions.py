"""Loads questions with reference answers from files, folders, the Hub, functions or datasets."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

from ..io.on_disk_sequence import OnDiskSequence
from .grading.extraction import extract_answer
from .reference_answers import is_text, reference_text
from .row_sources import open_rows


logger = logging.getLogger(__name__)

QUESTION_COLUMNS = ("question", "problem", "prompt", "query", "instruction", "input")
ANSWER_COLUMNS = ("answer", "final_answer", "reference_answer", "ground_truth", "solution")


class Question(NamedTuple):
    """
    A question with its reference answer.

    Args:
        question (`str`):
            Text of the question.
        answer (`str`, *optional*):
            Reference answer, if known. Only the final answer, e.g. `"18"`, without the worked solution.
        prompt (`str` or `list[dict[str, str]]`, *optional*):
            Text or conversation that the policy reads instead of the question in the sampler's template.
        columns (`dict[str, Any]`, *optional*):
            Other columns of the row, which `reset` of an environment receives.
    """

    question: str
    answer: str | None = None
    prompt: str | list[dict[str, str]] | None = None
    columns: dict[str, Any] | None = None


class Questions(OnDiskSequence):
    """
    A sequence of questions, as returned by [`load_questions`]. Questions are read from their rows on access, so the
    rows of a `datasets.Dataset` stay on disk.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows of the questions, as a list or a `datasets.Dataset`.
        name (`str`):
            Source of the rows, for errors.
        question_column (`str`):
            Column with the question.
        answer_column (`str`, *optional*):
            Column with the reference answer. Without it, answers are `None`.
        columns (`Sequence[str]`, *optional*):
            Other columns to keep.
    """

    def __init__(
        self, rows, name: str, question_column: str, answer_column: str | None = None, columns: Sequence[str] = ()
    ):
        self._rows, self._name = rows, name
        self._question_column, self._answer_column, self._columns = question_column, answer_column, columns

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
        question = question_text(row.get(self._question_column), index, self._question_column)
        columns = {column: _json_value(row.get(column), index, column) for column in self._columns} or None
        if self._answer_column is None:
            return Question(question, columns=columns)
        place = f"Row {index} of {self._name}: column {self._answer_column!r}"
        value = row.get(self._answer_column)
        answer = reference_text(value, place)
        if answer is None:
            raise ValueError(
                f"{place} holds no reference answer (got {str(value)[:80]!r}, {type(value).__name__}, expected a text "
                "or a number). Fill it in, drop the row, or choose another column with `answer_column`."
            )
        return Question(question, (extract_answer(answer) or answer).strip(), columns=columns)


def load_questions(
    source: str | PathLike | Iterable[Mapping[str, Any]],
    *,
    config_name: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    answer_column: str | None = None,
    columns: Sequence[str] = (),
    max_questions: int | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
    require_answers: bool = True,
) -> Questions:
    r"""
    Loads questions, and extracts the final answer from each reference.

    Args:
        source (`str`, `PathLike` or iterable of mappings):
            Dataset id on the Hub, a local `.jsonl`, `.json`, `.csv`, `.tsv` (each also with `.gz`) or `.parquet` file,
            a folder that was written by `save_to_disk` or contains data files, a function as
            `"package.module:function"` that returns rows, or the rows themselves: a list, a `datasets.Dataset`, an
            `IterableDataset`, or a `DatasetDict`.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset, e.g. `"main"` for GSM8K.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset, of a folder with several splits, or of a `DatasetDict`.
        question_column, answer_column (`str`, *optional*):
            Columns to read. They default to the first columns with usual names (`question`, `problem`, ...; `answer`,
            `solution`, ...).
        columns (`Sequence[str]`, *optional*):
            Other columns to keep, which `reset` of an environment receives, see [`collect_rollouts`].
        max_questions (`int`, *optional*):
            Number of rows to read, from the start. From a stream, no more rows than this are read.
        dataset_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments of `datasets.load_dataset` or of the function.
        require_answers (`bool`, *optional*, defaults to `True`):
            Whether an answer column is required. If `False`, and the rows have no answer column, answers are `None`.

    Returns:
        [`Questions`]: a sequence of [`Question`], in the order of the source. GSM8K references (`... #### 18`) and
        MATH references (`... \boxed{18}`) are reduced to the final answer. Other references are used unchanged.

    Raises:
        `ValueError`: if there are no rows, if the file, split or column does not exist, or if a row has an empty
        question or no reference answer.
    """
    rows, name = open_rows("Questions", source, config_name, split, dataset_kwargs or {}, max_questions)
    first = rows[0]
    question_column = find_column(first, question_column, QUESTION_COLUMNS, "question_column", name)
    if require_answers or answer_column is not None or any(column in first for column in ANSWER_COLUMNS):
        answer_column = find_column(first, answer_column, ANSWER_COLUMNS, "answer_column", name)
    for column in columns:
        find_column(first, column, (), "columns", name)
    if unused := [column for column in ANSWER_COLUMNS if column in first and column != answer_column]:
        logger.info(
            f"Questions of {name}: reference answers are read from column {answer_column!r}. Not read: "
            f"{', '.join(map(repr, unused))}."
        )
    if hasattr(rows, "select_columns"):
        rows = rows.select_columns([question_column, *([answer_column] if answer_column else []), *columns])
    questions = Questions(rows, name, question_column, answer_column, tuple(columns))
    for _ in questions:  # read all rows once, so that an unusable row raises now and not after hours of sampling
        pass
    return questions


def fingerprint(questions: Iterable[Question]) -> str:
    """A hash of all questions, answers and prompts in order. It identifies the questions of a collection."""
    digest = hashlib.sha256()
    for question in questions:
        # Entries at the end that are None are left out, so that the hash is the same as in releases without them, and
        # old folders can be resumed.
        known = question if question.columns is not None else question[: 2 if question.prompt is None else 3]
        digest.update(json.dumps(known).encode() + b"\n")
    return digest.hexdigest()[:16]


def find_column(row: Mapping, column_name: str | None, usual: tuple[str, ...], argument: str, name: str) -> str:
    """The column that `argument` names, or else the first of the `usual` columns that the row has."""
    candidates = (column_name,) if column_name else usual
    for column in candidates:
        if column in row:
            return column
    raise ValueError(
        f"Columns of {name}: got {sorted(map(str, row))}, expected {' or '.join(map(repr, candidates))}. Name the "
        f"right one with `{argument}`."
    )


def question_text(value: Any, index: int, column: str) -> str:
    """The text of a question from a text, or a conversation of one user message. Other values are an error."""
    # In TRL's conversational format, a single user message is a question. A longer conversation is not.
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not is_text(value):
        raise ValueError(
            f"Row {index}: column {column!r} got {str(value)[:80]!r}, expected a non-empty string of Unicode text, or "
            "a list of one user message. Drop the row, or choose another column with `question_column`."
        )
    return value


def _json_value(value: Any, index: int, column: str) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Row {index}: column {column!r} got {str(value)[:80]!r} ({error}), expected a JSON value. Convert it, or "
            "leave the column out of `columns`."
        ) from None
