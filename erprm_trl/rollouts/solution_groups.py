"""Groups given solutions by question, so that a collection can process all solutions to a question together."""

import hashlib
import json
import logging
from collections.abc import Sequence

import numpy as np

from ..io.on_disk_sequence import OnDiskSequence
from .given_solutions import GivenSolution


logger = logging.getLogger(__name__)

_KEY_BYTES = 12


class SolutionGroups(OnDiskSequence):
    """
    The solutions of each question, as a sequence of lists. The questions are in the order of their first solutions,
    and the solutions of a question are in the order of the source. Only indices are kept in memory.

    Solutions belong to the same question if their question texts and reference answers are equal. A warning is logged
    if a question has several reference answers, or an id has several questions.

    Args:
        solutions (`Sequence[GivenSolution]`):
            The solutions. They are read once.
        need_answers (`bool`):
            Whether each solution needs a reference answer.
        need_correct (`bool`, *optional*, defaults to `False`):
            Whether each solution needs to say whether it is correct.

    Attributes:
        sizes (`numpy.ndarray`): number of solutions of each question.
        fingerprint (`str`): a hash of all solutions in order. It identifies the solutions of a collection.

    Raises:
        `ValueError`: if there are no solutions, the steps of a solution are not its text, or a needed reference answer
            or correctness is missing.
    """

    def __init__(self, solutions: Sequence[GivenSolution], need_answers: bool, need_correct: bool = False):
        if not len(solutions):
            raise ValueError(
                "Solutions: got an empty sequence, expected at least one. Pass the result of load_solutions."
            )
        self._solutions = solutions
        digest = hashlib.sha256()
        groups, texts, ids = _Keys(), _Keys(), _Keys()
        num_without, first_without = 0, 0
        for index, solution in enumerate(solutions):
            _check(index, solution)
            if solution.answer is None:
                first_without = index if num_without == 0 else first_without
                num_without += 1
            if need_correct and solution.correct is None:
                raise ValueError(
                    f"Solutions: got solution {index} ({solution.question[:80]!r}) without a correctness, expected "
                    "true or false for each with grading='stated'. Name the column with correct_column, or choose "
                    "another grading."
                )
            digest.update(json.dumps(solution).encode() + b"\n")
            groups.add([solution.question, solution.answer])
            texts.add(solution.question)
            ids.add(index if solution.id is None else [solution.id])
        if need_answers and num_without:
            raise ValueError(
                f"Solutions: got {num_without} of {len(solutions)} without a reference answer, the first is solution "
                f"{first_without} ({solutions[first_without].question[:80]!r}), expected an answer for each, because "
                "solutions and continuations are graded. Name the column with answer_column, drop these rows, or set "
                "grading=None and num_continuations=0."
            )
        self.fingerprint = digest.hexdigest()[:16]
        group_of_solution = groups.numbers()
        self._order = np.argsort(group_of_solution, kind="stable")
        self.sizes = np.bincount(group_of_solution)
        self._ends = np.cumsum(self.sizes)
        question_of_solution = texts.numbers()
        self._warn_if_several(question_of_solution, group_of_solution, "questions have several reference answers")
        self._warn_if_several(ids.numbers(), question_of_solution, "ids have several questions")

    def __len__(self) -> int:
        return len(self.sizes)

    def _read(self, index: int) -> list[GivenSolution]:
        end = self._ends[index]
        return [self._solutions[int(place)] for place in self._order[end - self.sizes[index] : end]]

    def _warn_if_several(self, owners: np.ndarray, values: np.ndarray, problem: str) -> None:
        """Logs how many owners have solutions with different values."""
        _, first = np.unique(owners, return_index=True)
        other = np.flatnonzero(values != values[first][owners])
        if other.size:
            pair = int(first[owners[other[0]]]), int(other[0])
            shown = " and ".join(
                f"solution {index} (id {solution.id!r}, question {solution.question[:60]!r}, answer "
                f"{solution.answer!r})"
                for index, solution in zip(pair, (self._solutions[index] for index in pair), strict=True)
            )
            logger.warning(
                "Solutions: %d %s, e.g. %s. Solutions with the same question and reference answer are grouped.",
                len(np.unique(owners[other])),
                problem,
                shown,
            )


class _Keys:
    """Numbers equal values equally, in the order of their first occurrence. Only hashes are kept in memory."""

    def __init__(self):
        self._hashes = bytearray()

    def add(self, value) -> None:
        key = hashlib.blake2b(json.dumps(value).encode(), digest_size=_KEY_BYTES).hexdigest()
        self._hashes += key.encode()

    def numbers(self) -> np.ndarray:
        hashes = np.frombuffer(bytes(self._hashes), dtype=f"S{2 * _KEY_BYTES}")
        _, first, place = np.unique(hashes, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[place]


def _check(index: int, solution: GivenSolution) -> None:
    if not isinstance(solution, GivenSolution):
        raise TypeError(
            f"Solutions: got {type(solution).__name__} at index {index}, expected GivenSolution. Pass the result of "
            "load_solutions."
        )
    if solution.steps is not None and "".join(solution.steps) != solution.text:
        raise ValueError(
            f"Solutions: got steps at index {index} that are not the text when joined ({solution.text[:80]!r}), "
            "expected steps with their delimiters. Pass text=''.join(steps)."
        )
