"""Loads solutions that someone else wrote, from files, folders, the Hub, functions or datasets.

A row has one solution to a question, or a list of solutions. A solution is a text or a list of steps.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from ..io.on_disk_sequence import OnDiskSequence
from ..steps import whole_characters
from .grading.extraction import extract_answer
from .questions import ANSWER_COLUMNS, QUESTION_COLUMNS, find_column, question_text
from .reference_answers import reference_text
from .row_sources import open_rows


logger = logging.getLogger(__name__)

# The singular of a name is a column with one solution, the plural a column with a list of solutions. The form of the
# values decides in both cases.
TEXT_COLUMNS = ("response", "completion", "generation", "output", "candidate", "sample", "solution", "text")
SOLUTION_COLUMNS = tuple(name + ending for name in TEXT_COLUMNS for ending in ("", "s"))
STEPS_COLUMNS = ("steps",)
CORRECT_COLUMNS = ("correct", "is_correct", "correctness", "final_answer_correct")
ID_COLUMNS = ("id", "solution_id", "unique_id", "uid", "uuid")
_CORRECT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class GivenSolution(NamedTuple):
    """
    A solution that someone else wrote.

    Args:
        question (`str`):
            Text of the question.
        text (`str`):
            Text of the solution. May be empty.
        answer (`str`, *optional*):
            Reference answer of the question, if known.
        steps (`tuple[str, ...]`, *optional*):
            Steps of the solution with their delimiters. Joined, they are exactly `text`. `None` if the solution is a
            text that is not split yet.
        correct (`bool`, *optional*):
            Whether the solution is correct according to its source, if known.
        id (`str` or `int`, *optional*):
            Identifier of the row.
        metadata (`Mapping[str, Any]`, *optional*):
            The other columns of the row, as JSON values. `None` if there are none.
    """

    question: str
    text: str
    answer: str | None = None
    steps: tuple[str, ...] | None = None
    correct: bool | None = None
    id: str | int | None = None
    metadata: Mapping[str, Any] | None = None


class Columns(NamedTuple):
    """
    The columns in which solutions are stored. All but `question` may be missing. Exactly one of `solution` and `steps`
    is set.
    """

    question: str
    answer: str | None
    solution: str | None
    steps: str | None
    correct: str | None
    id: str | None
    metadata: tuple[str, ...]

    @property
    def text(self) -> str:
        """The column with the solution or its steps."""
        return self.solution or self.steps


class GivenSolutions(OnDiskSequence):
    """
    A sequence of [`GivenSolution`], as returned by [`load_solutions`]. Solutions are read from their rows on access,
    so the rows of a `datasets.Dataset` stay on disk. All rows are read and checked once when the sequence is made.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows of the solutions, as a list or a `datasets.Dataset`.
        name (`str`):
            Source of the rows, for errors.
        columns ([`Columns`]):
            Columns to read.
        step_delimiter (`str`, *optional*, defaults to `"\\n"`):
            See [`load_solutions`].
    """

    def __init__(self, rows, name: str, columns: Columns, step_delimiter: str = "\n"):
        self._rows, self._name, self.columns, self._step_delimiter = rows, name, columns, step_delimiter
        # Columns with one value per solution in all rows. At first, this is unknown.
        self._per_solution: frozenset[str] = frozenset()
        self._last: tuple[int, list[GivenSolution]] = (-1, [])
        sizes, is_list, per_solution = [], False, set(columns.metadata)
        for index, row in enumerate(rows):
            solutions, row_is_list = self._read_row(index, row)
            is_list = is_list or row_is_list
            sizes.append(len(solutions))
            per_solution = {
                column
                for column in per_solution
                if isinstance(row.get(column), list) and len(row[column]) == len(solutions)
            }
        self._per_solution = frozenset(per_solution) if is_list else frozenset()
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[GivenSolution]:
        for index, row in enumerate(self._rows):
            yield from self._read_row(index, row)[0]

    def _read(self, index: int) -> GivenSolution:
        row_index = int(np.searchsorted(self._ends, index, side="right"))
        # The solutions of a row are usually read one after the other.
        if self._last[0] != row_index:
            self._last = row_index, self._read_row(row_index, self._rows[row_index])[0]
        solutions = self._last[1]
        return solutions[index - int(self._ends[row_index])]

    def _read_row(self, index: int, row: Any) -> tuple[list[GivenSolution], bool]:
        """The solutions of a row, and whether the row has a list of solutions."""
        place = f"Row {index} of {self._name}"
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{place}: got {str(row)[:80]!r} ({type(row).__name__}), expected a mapping of columns to values. "
                "Drop the row."
            )
        columns = self.columns
        question = question_text(row.get(columns.question), index, columns.question)
        answer = None
        if columns.answer is not None:
            answer = reference_text(row.get(columns.answer), f"{place}: column {columns.answer!r}")
            answer = None if answer is None else (extract_answer(answer) or answer).strip()
        identifier = None if columns.id is None else _identifier(row.get(columns.id))
        texts, is_list = self._texts(row, place)
        size = len(texts)
        corrects = [None] * size
        if columns.correct is not None:
            where = f"{place}: column {columns.correct!r}"
            corrects = _corrects(row.get(columns.correct), size if is_list else None, where)
        metadata = {column: self._metadata(row[column], column, place) for column in columns.metadata if column in row}
        solutions = []
        for position, ((text, steps), correct) in enumerate(zip(texts, corrects, strict=True)):
            own = {
                column: value[position] if column in self._per_solution else value
                for column, value in metadata.items()
            }
            solutions.append(GivenSolution(question, text, answer, steps, correct, identifier, own or None))
        return solutions, is_list

    def _texts(self, row: Mapping[str, Any], place: str) -> tuple[list[tuple[str, tuple[str, ...] | None]], bool]:
        """The text and the steps of each solution of a row, and whether the row has a list of solutions."""
        column = self.columns.text
        value = row.get(column)
        place = f"{place}: column {column!r}"
        if self.columns.steps is None:
            text = _solution_text(value)
            if text is not None:
                return [(text, None)], False
            texts = [_solution_text(item) for item in value] if isinstance(value, (list, tuple)) else []
            if texts and None not in texts:
                return [(text, None) for text in texts], True
            raise ValueError(
                f"{place} holds no solution (got {str(value)[:80]!r}, {type(value).__name__}, expected a text, a "
                "conversation of one assistant message, or a list with at least one of these). Drop the row, or choose"
                " another column with `solution_column`, or with `steps_column` for a list of steps."
            )
        if _is_steps(value):
            return [self._joined(value)], False
        if isinstance(value, (list, tuple)) and value and all(map(_is_steps, value)):
            return [self._joined(steps) for steps in value], True
        raise ValueError(
            f"{place} holds no steps (got {str(value)[:80]!r}, {type(value).__name__}, expected a list of texts, or a "
            "list with at least one list of texts). Drop the row, or choose another column with `steps_column`, or "
            "with `solution_column` for a text."
        )

    def _joined(self, steps: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        delimiter = self._step_delimiter
        steps = [whole_characters(step) for step in steps]
        delimited = [
            step if _are_apart(step, following, delimiter) else step + delimiter for step, following in pairwise(steps)
        ]
        delimited += steps[-1:]
        return "".join(delimited), tuple(delimited)

    def _metadata(self, value: Any, column: str, place: str) -> Any:
        try:
            return json.loads(json.dumps(value))  # tuples become lists, as after reading them from a file
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: column {column!r} got {str(value)[:80]!r} ({error}), expected a JSON value. Convert it, or "
                "name the columns that should be kept with `metadata_columns`."
            ) from None


def load_solutions(
    source: str | PathLike | Iterable[Mapping[str, Any]],
    *,
    config_name: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    answer_column: str | None = None,
    solution_column: str | None = None,
    steps_column: str | None = None,
    correct_column: str | None = None,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | None = None,
    step_delimiter: str = "\n",
    max_rows: int | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
) -> GivenSolutions:
    r"""
    Loads solutions that someone else wrote.

    A row has a question, and one solution or a list of solutions. A solution is a text, or a list of steps. The
    reference answer, whether the solution is correct, and an id are optional. Other columns are kept as metadata.

    Args:
        source (`str`, `PathLike` or iterable of mappings):
            Dataset id on the Hub, file, folder, function as `"package.module:function"`, or rows, as for
            [`load_questions`].
        config_name, split, dataset_kwargs (*optional*):
            See [`load_questions`].
        question_column, answer_column (`str`, *optional*):
            Columns of the question and of the reference answer. They default to the first columns with usual names, as
            for [`load_questions`]. The final answer is extracted from GSM8K and MATH references. A row may have no
            answer.
        solution_column (`str`, *optional*):
            Column of the text of the solution, or of a list of texts. Each text may also be a conversation of one
            assistant message. Defaults to the first column with a usual name (`response`, `completion`, `generation`,
            `output`, `solution`, `text`, ..., or one of their plurals).
        steps_column (`str`, *optional*):
            Column of the steps of a solution, or of a list of solutions with steps. Defaults to `steps`, or to
            `completions` in TRL's stepwise form (with a column `labels`). If it exists, no column of texts is read.
        correct_column (`str`, *optional*):
            Column that says whether the solution is correct: a boolean, 0 or 1. In a row with a list of solutions, it
            is a list. Defaults to the first column with a usual name (`correct`, `is_correct`, ...) and such values.
        id_column (`str`, *optional*):
            Column of the identifier of a row. Defaults to the first column with a usual name (`id`, `unique_id`, ...).
        metadata_columns (`Sequence[str]`, *optional*):
            Columns to keep with each solution. They default to all columns that are not read otherwise. In rows with
            lists of solutions, a column that has a list with one value per solution in every row is divided among the
            solutions.
        step_delimiter (`str`, *optional*, defaults to `"\n"`):
            Text that is added to each step but the last, unless the step ends with this text. If the delimiter is
            white space, it is only added if there is no white space between the two steps. Without a delimiter, the
            policy that continues the solution would read the steps as one line.
        max_rows (`int`, *optional*):
            Number of rows to read, from the start.

    Returns:
        [`GivenSolutions`]: a sequence of [`GivenSolution`], in the order of the source.

    Raises:
        `ValueError`: if there are no rows, if the file, split or column does not exist, or if a row has no question or
            no solution. A solution may be an empty text.
    """
    rows, name = open_rows("Solutions", source, config_name, split, dataset_kwargs or {}, max_rows)
    return solutions_of_rows(
        rows,
        name,
        question_column=question_column,
        answer_column=answer_column,
        solution_column=solution_column,
        steps_column=steps_column,
        correct_column=correct_column,
        id_column=id_column,
        metadata_columns=metadata_columns,
        step_delimiter=step_delimiter,
    )


def solutions_of_rows(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    solution_column: str | None = None,
    steps_column: str | None = None,
    correct_column: str | None = None,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | None = None,
    step_delimiter: str = "\n",
) -> GivenSolutions:
    """
    Finds the columns of rows that are already open, see [`load_solutions`].

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows from [`~erprm_trl.rollouts.row_sources.open_rows`].
        name (`str`):
            Source of the rows, for errors.
        question_column, answer_column, solution_column, steps_column, correct_column, id_column (*optional*):
            Columns to read.
        metadata_columns, step_delimiter (*optional*):
            See [`load_solutions`].
    """
    first = _first_values(rows)
    if solution_column is not None and steps_column is not None:
        raise ValueError(
            f"Columns of {name}: got solution_column={solution_column!r} and steps_column={steps_column!r}, expected "
            "one of them. Pass steps_column for solutions that are divided into steps."
        )
    question_column = find_column(first, question_column, QUESTION_COLUMNS, "question_column", name)
    if steps_column is not None:
        steps_column = find_column(first, steps_column, (), "steps_column", name)
    elif solution_column is None:
        steps_column = _steps_column(first)
    if steps_column is None:
        solution_column = find_column(first, solution_column, SOLUTION_COLUMNS, "solution_column", name)
    read = {question_column, steps_column or solution_column}
    if answer_column is not None or any(column in first for column in ANSWER_COLUMNS if column not in read):
        usual = tuple(column for column in ANSWER_COLUMNS if column not in read)
        answer_column = find_column(first, answer_column, usual, "answer_column", name)
    if correct_column is not None:
        correct_column = find_column(first, correct_column, (), "correct_column", name)
    else:
        readable = (column for column in CORRECT_COLUMNS if column in first and _says_correct(first[column]))
        correct_column = next(readable, None)
        if correct_column is None:
            _warn_of_unread_correctness(first, name)
    if id_column is not None or any(column in first for column in ID_COLUMNS):
        id_column = find_column(first, id_column, ID_COLUMNS, "id_column", name)
    read |= {answer_column, correct_column, id_column}
    if metadata_columns is None:
        metadata_columns = [column for column in first if column not in read]
    else:
        for column in metadata_columns:
            find_column(first, column, (), "metadata_columns", name)
    columns = Columns(
        question_column,
        answer_column,
        solution_column,
        steps_column,
        correct_column,
        id_column,
        tuple(metadata_columns),
    )
    if hasattr(rows, "select_columns"):
        rows = rows.select_columns(list(dict.fromkeys([*filter(None, columns[:6]), *metadata_columns])))
    return GivenSolutions(rows, name, columns, step_delimiter)


def _warn_of_unread_correctness(first: Mapping[str, Any], name: str) -> None:
    """Warns of a column with the name of a correctness, whose values are of another kind."""
    for column in CORRECT_COLUMNS:
        if first.get(column) is not None:
            logger.warning(
                "%s: column %r is not read as the correctness of the solutions, because its first value is %.40r, not "
                "true, false, 1 or 0. Convert it, or rename it if it is something else.",
                name, column, first[column],
            )  # fmt: skip


def _first_values(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """All columns of the rows, each with its first value that is not `None`. The columns of a list of rows may differ,
    and an optional column may be empty in the first row."""
    columns: dict[str, Any] = {}
    is_table = hasattr(rows, "select_columns")
    for row in rows:
        if isinstance(row, Mapping):  # a row of another type is reported when it is read
            columns |= {name: value for name, value in row.items() if columns.get(name) is None}
        if is_table and not any(name in columns and columns[name] is None for name in CORRECT_COLUMNS):
            break  # a table has the same columns in every row
    return columns


def as_solutions(
    source: str | PathLike | Sequence[GivenSolution] | Iterable[Mapping[str, Any]],
) -> Sequence[GivenSolution]:
    """Returns a sequence of [`GivenSolution`] unchanged, and reads any other source with [`load_solutions`]."""
    if isinstance(source, Sequence) and not isinstance(source, str) and len(source):
        if isinstance(source[0], GivenSolution):
            return source
    return load_solutions(source)


def _steps_column(row: Mapping[str, Any]) -> str | None:
    if "completions" in row and "labels" in row:  # TRL's stepwise form
        return "completions"
    return next((column for column in STEPS_COLUMNS if column in row), None)


def _solution_text(value: Any) -> str | None:
    """The text of a solution, `None` if the value is not a solution."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    # JSON may contain lone surrogates, which tokenizers reject.
    return whole_characters(value) if isinstance(value, str) else None


def _is_steps(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(step, str) for step in value)


def _are_apart(step: str, following: str, delimiter: str) -> bool:
    if step.endswith(delimiter):
        return True
    return delimiter.isspace() and (step[-1:].isspace() or following[:1].isspace())


def _identifier(value: Any) -> str | int | None:
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)


def _says_correct(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(str(item).strip().lower() in _CORRECT for item in values)


def _corrects(value: Any, size: int | None, place: str) -> list[bool | None]:
    """Whether each solution of a row is correct. `size` is the number of solutions in a list, or `None`."""
    values = [value] if size is None else value
    missing = isinstance(values, (list, tuple)) and all(item is None for item in values)
    if values is None or (missing and len(values) == (size or 1)):
        return [None] * (size or 1)
    if not isinstance(values, (list, tuple)) or len(values) != (size or 1) or not _says_correct(values):
        expected = "true, false, 1 or 0" if size is None else f"a list of {size} values, each true, false, 1 or 0"
        raise ValueError(
            f"{place} got {str(value)[:80]!r} ({type(value).__name__}), expected {expected}. Correct the row, or "
            "choose another column with `correct_column`."
        )
    return [_CORRECT[str(item).strip().lower()] for item in values]
