"""Grades solutions that were made elsewhere, and writes them as a folder of samples, so that all reward models are
compared on the same candidates."""

import logging
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..io.on_disk_sequence import OnDiskSequence
from ..rollouts.collect import collect_rollouts
from ..rollouts.dataset import RolloutDataset
from ..rollouts.given_solutions import GivenSolution, solutions_of_rows
from ..rollouts.grading.grader import STATED
from ..rollouts.row_sources import open_rows


logger = logging.getLogger(__name__)

_MARK = "ки"  # follows each step in solutions of models that were trained on Math-Shepherd's texts
_MARK_ALONE = re.compile(rf"(?<!\w){_MARK}(?!\w)")  # not the end of a Russian word
# Columns of published candidate sets, by the columns that identify them. Of several names, the first that exists.
_PUBLISHED: dict[frozenset[str], dict[str, tuple[str, ...]]] = {
    # RLHFlow's test sets
    frozenset({"prompt", "answers"}): {
        "question_column": ("prompt",),
        "solution_column": ("answers",),
        "correct_column": ("label", "labels"),
    },
    # Completions of Hugging Face's search-and-learn
    frozenset({"problem", "completions"}): {
        "question_column": ("problem",),
        "answer_column": ("answer",),
        "solution_column": ("completions",),
    },
}


def collect_candidates(
    source: str | PathLike | Iterable[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    config_name: str | None = None,
    split: str = "train",
    max_rows: int | None = None,
    splitter: str = "newline",
    grading: str | None = None,
    answer_pattern: str | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
    show_progress: bool = True,
    **columns: str | None,
) -> RolloutDataset:
    r"""
    Reads solutions that were made elsewhere, grades them if needed, and writes them into a folder of samples.

    The columns of RLHFlow's test sets (`prompt`, `answers`, `label`) and of search-and-learn's completions (`problem`,
    `answer`, `completions`) are recognised. The mark `ки` after the steps of RLHFlow's Mistral solutions is removed,
    unless it is the splitter. Other names are read as in [`~erprm_trl.rollouts.load_solutions`].

    Args:
        source (`str`, `PathLike` or iterable of mappings):
            Dataset id on the Hub, file, folder, function as `"package.module:function"`, or rows. A row has one
            solution or a list of solutions to its question. Rows with the same question and answer are put together.
        output_dir (`str` or `Path`):
            Folder of the samples. A call with the same arguments continues after a kill, or reads the finished folder.
        config_name, split, max_rows, dataset_kwargs (*optional*):
            See [`~erprm_trl.rollouts.load_solutions`].
        splitter (`str`, *optional*, defaults to `"newline"`):
            Splitter of solutions that are texts, see [`~erprm_trl.PRMFormat`].
        grading (`str`, *optional*):
            How solutions are graded, see [`~erprm_trl.rollouts.Grader`]. Defaults to what the source says
            (`"stated"`), if every solution has a correctness, and otherwise to `"math"`, which needs answers.
        answer_pattern (`str`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        columns (`str`, *optional*):
            `question_column`, `answer_column`, `solution_column`, `steps_column` and `correct_column`.

    Returns:
        [`~erprm_trl.RolloutDataset`]: the graded solutions, without continuations.

    Raises:
        `ValueError`: if a row has no question or no solution, or a solution neither an answer nor a correctness.
    """
    rows, name = open_rows("Solutions", source, config_name, split, dataset_kwargs or {}, max_rows)
    chosen = {argument: column for argument, column in columns.items() if column is not None}
    present = getattr(rows, "column_names", None) or list(rows[0])
    known = next((form for form in _PUBLISHED if form.issubset(present)), None)
    if known is not None and not {"question_column", "solution_column", "steps_column"} & set(chosen):
        for argument, usual in _PUBLISHED[known].items():
            if column := next((column for column in usual if column in present), None):
                chosen.setdefault(argument, column)
        logger.info("Candidates: the columns are read as %s.", chosen)
    given = solutions_of_rows(rows, name, metadata_columns=[], **chosen)
    is_marked = splitter.strip() != _MARK and any(_MARK_ALONE.search(solution.text) for solution in given)
    solutions = _WithoutMarks(given) if is_marked else given
    return collect_rollouts(
        solutions=solutions,
        output_dir=output_dir,
        num_continuations=0,
        splitter=splitter,
        grading=grading or _grading(solutions, name),
        answer_pattern=answer_pattern,
        show_progress=show_progress,
    )


def _grading(solutions: Iterable[GivenSolution], name: str) -> str:
    """Checks that every solution can be graded, and chooses how."""
    stated = answered = True
    for index, solution in enumerate(solutions):
        stated, answered = stated and solution.correct is not None, answered and solution.answer is not None
        if not stated and not answered:
            raise ValueError(
                f"Solution {index} of {name} ({solution.question[:60]!r}): got "
                f"{'no correctness' if solution.answer is not None else 'no answer'}, expected a reference answer for "
                "every solution, or for every solution whether it is correct. Fill in the column, or name it with "
                "`answer_column` or `correct_column`."
            )
    return STATED if stated else "math"


class _WithoutMarks(OnDiskSequence):
    """Solutions whose texts are cut into steps at their marks."""

    def __init__(self, solutions):
        self._solutions = solutions

    def __len__(self) -> int:
        return len(self._solutions)

    def _read(self, index: int) -> GivenSolution:
        solution = self._solutions[index]
        if solution.steps is not None or not _MARK_ALONE.search(solution.text):
            return solution
        pieces = [piece.strip() for piece in _MARK_ALONE.split(solution.text)]
        pieces = [piece for piece in pieces if piece]
        steps = tuple(f"{piece}\n" for piece in pieces[:-1]) + tuple(pieces[-1:])
        return solution._replace(text="".join(steps), steps=steps)
