"""Grades whole completions against reference answers: the reward (1 = right) of every solution and continuation.

Model output is untrusted and never executed. It is read in worker processes, which are killed when they exceed their
time limit.
"""

import atexit
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable

from .extraction import extract_answer
from .normal_form import normal_form, normalize_answer
from .pool import CallerError, GradingPool
from .worker import METHODS, FunctionGrader


__all__ = ["Grader", "extract_answer", "grade"]

logger = logging.getLogger(__name__)

MAX_CACHED = 8  # graders kept by `grade`


def _import_path(function: Callable) -> str | None:
    """The path by which a worker can import `function`, `None` for a lambda, a closure or a script's own function."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    importable = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if importable is function and module != "__main__" else None


class Grader:
    r"""
    Grades completions against reference answers in worker processes, started at the first call.

    Args:
        method (`str` or `Callable`, *optional*, defaults to `"math"`):
            How a completion is compared with its reference:

            - `"math"`: math-verify, which reads LaTeX and numbers. Takes the last marked answer (see
              [`extract_answer`]); without one, the last number or formula. Both the answer and the reference are read
              without currency, unit and percent sign: `#### 18 dollars`, `\boxed{18\text{ cm}}` and `18` are the same.
              A percentage of at most 100 also equals its fraction: `50\%` is `1/2`.
            - `"exact"`: the extracted answer has the spelling of the reference after Markdown emphasis, `$`,
              parentheses and punctuation around it and thousands commas are removed from both. Units count.
            - a function `f(completion, answer)` returning the reward as a float, or its import path
              `"package.module:function"`. Any callable object is accepted. One that cannot be imported by name (a
              lambda, a closure, a `functools.partial`, a function defined in the script being run) runs in this
              process, where no time limit holds.
        answer_pattern (`str`, *optional*):
            Regular expression whose group 1, in its last match, is the final answer. See [`extract_answer`].
        num_workers (`int`, *optional*, defaults to at most 4):
            Number of worker processes.
        time_limit (`float`, *optional*, defaults to `5.0`):
            Maximum seconds per answer. An answer that takes longer gets reward 0. Processor time is counted, so that
            rewards do not depend on the machine's load. For your own function, elapsed time is counted.
        max_chars (`int`, *optional*, defaults to `2000`):
            Maximum length of an answer for `"math"`, in characters. Of a completion without a marked answer, so many
            characters at the end are read.
        reasoning (`bool`, *optional*):
            Whether completions have reasoning delimiters. By default, only the text after the last `</think>` is
            graded, and in it only the last `<answer>`, if the completion has these. A completion whose `<think>` is
            not closed has no answer. `True` is for completions that begin inside `<think>`: without a `</think>` they
            have no answer. `False` reads delimiters as ordinary text. Your own function gets the whole completion,
            unless this is `True`: then it gets only the part that is graded, and is not called if there is none.

    `"math"` and `"exact"` give 0 if they find no answer. `num_timeouts` counts the answers that
    got 0 because they took too long or ended their worker.
    """

    def __init__(
        self,
        method: str | Callable[[str, str], float] = "math",
        answer_pattern: str | None = None,
        num_workers: int | None = None,
        time_limit: float = 5.0,
        max_chars: int = 2000,
        reasoning: bool | None = None,
    ):
        if not isinstance(method, str) and not callable(method):
            raise TypeError(
                f"`method` is a {type(method).__name__}, expected {', '.join(map(repr, METHODS))}, a function, or its "
                "import path 'package.module:function'."
            )
        if isinstance(method, str) and method not in METHODS and not re.fullmatch(r"[\w.]+:[\w.]+", method):
            raise ValueError(
                f"`method` is {method!r}, expected one of {', '.join(map(repr, METHODS))}, a function, or its import "
                "path 'package.module:function'."
            )
        if answer_pattern is not None and re.compile(answer_pattern).groups < 1:
            raise ValueError(
                f"`answer_pattern` {answer_pattern!r} has no group, expected the answer in group 1: put parentheses "
                "around what matches it."
            )
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        if reasoning not in (None, True, False):
            raise ValueError(f"`reasoning` is {reasoning!r}, expected None, True or False.")
        if num_workers < 1 or time_limit <= 0 or max_chars < 1:
            raise ValueError(
                f"Got num_workers={num_workers}, time_limit={time_limit}, max_chars={max_chars}: all must be positive."
            )
        self.method, self.answer_pattern, self.reasoning = method, answer_pattern, reasoning
        path = method if isinstance(method, str) else _import_path(method)
        self._here = None
        if path is None:
            self._here = FunctionGrader(method, answer_pattern, reasoning)
            logger.warning(
                f"The grading function {grading_name(method)!r} cannot be imported by name: it runs in this process, "
                "without a time limit. Name a plain function of a module, 'package.module:function', to have it run "
                "in workers."
            )
        settings = {"method": path, "pattern": answer_pattern, "max_chars": max_chars, "time_limit": time_limit}
        settings["reasoning"] = reasoning
        self._pool = GradingPool(settings, num_workers, time_limit)

    @property
    def num_timeouts(self) -> int:
        """How many answers got 0 because they took too long or ended their worker."""
        return self._pool.num_timeouts

    def grade(self, completions: list[str], answers: list[str]) -> list[float]:
        """The reward of each completion, in order: see [`~Grader.grade_and_extract`]."""
        return self.grade_and_extract(completions, answers)[0]

    def grade_and_extract(self, completions: list[str], answers: list[str]) -> tuple[list[float], list[str | None]]:
        """
        Grades completions and gives the final answers found in them. Identical pairs are graded once.

        Args:
            completions (`list[str]`):
                Whole completions.
            answers (`list[str]`):
                Reference answer of each: bare, in a `\\boxed{}`, or after `####`.

        Returns:
            `tuple[list[float], list[str | None]]`: Rewards, 1.0 for right and 0.0 for wrong unless a caller's function
            says otherwise, and final answers, `None` where there is none. Final answers are spelled alike where they
            are the same rational number; [`~Grader.equivalent`] compares any two.
        """
        _check(completions, answers)
        pairs = list(zip(completions, answers, strict=True))
        unique = list(dict.fromkeys(pairs))
        try:
            if self._here is None:
                outcomes = self._pool.run([("grade", *pair) for pair in unique])
            else:
                outcomes = [self._grade_here(index, *pair) for index, pair in enumerate(unique)]
        except CallerError as error:
            index, message = error.args
            raise RuntimeError(
                f"The grading function {grading_name(self.method)!r} raised on row {pairs.index(unique[index])}: "
                f"{message}. Expected a finite float: return 0.0 for a completion it cannot read."
            ) from error.__cause__
        outcome_of = dict(zip(unique, outcomes, strict=True))
        if self.method in METHODS and len(unique) >= 32 and not any(extracted for _, extracted in outcomes):
            logger.warning(
                f"None of {len(unique)} completions holds a final answer, so all got reward 0 (method "
                f"{self.method!r}, answer_pattern {self.answer_pattern!r}): set a pattern for what the policy writes."
            )
        return [outcome_of[pair][0] for pair in pairs], [outcome_of[pair][1] for pair in pairs]

    def _grade_here(self, index: int, completion: str, answer: str) -> tuple[float, str | None]:
        try:
            return self._here.grade(completion, answer)[:2]
        except Exception as error:
            raise CallerError(index, f"{type(error).__name__}: {error}") from error

    def equivalent(self, left: str, right: str) -> bool:
        """Whether two final answers are the same: mathematically for `"math"`, in their spelling otherwise."""
        for name, answer in (("left", left), ("right", right)):
            if not isinstance(answer, str):
                raise TypeError(f"`{name}` is a {type(answer).__name__}, expected a final answer as `str`.")
        spell = normal_form if self.method == "math" else normalize_answer
        if spell(left) == spell(right):
            return True
        return self.method == "math" and self._pool.run([("equivalent", left, right)])[0][0] == 1.0

    def close(self) -> None:
        """Ends the workers. A later call starts new ones."""
        self._pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def grading_name(method: str | Callable[[str, str], float] | None) -> str | None:
    """
    The name under which a manifest keeps a grading: the same in every process, and readable.

    Args:
        method (`str` or `Callable`, *optional*):
            See [`Grader`].

    Returns:
        `str` or `None`: A string as it is, `"module:function"` for a function, `"module:Class"` for a callable
        object, and the function with its arguments for a `functools.partial`.
    """
    if method is None or isinstance(method, str):
        return method
    if isinstance(method, functools.partial):
        arguments = [_argument_name(value) for value in method.args]
        arguments += [f"{name}={_argument_name(value)}" for name, value in sorted(method.keywords.items())]
        return f"functools.partial({', '.join([grading_name(method.func), *arguments])})"
    named = method if hasattr(method, "__qualname__") else type(method)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"


def _argument_name(value) -> str:
    if callable(value):
        return grading_name(value)
    # The representation of other objects may hold their address.
    return repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _check(completions: list[str], answers: list[str]) -> None:
    for name, texts in (("completions", completions), ("answers", answers)):
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
            raise TypeError(
                f"`{name}` is a {type(texts).__name__} ({str(texts)[:60]!r}), expected a list of texts: pass "
                f"`{name}=[...]`, also for a single text."
            )
    if len(completions) != len(answers):
        raise ValueError(
            f"Got {len(completions)} completions and {len(answers)} answers, expected one answer for each completion: "
            "repeat an answer for every completion of its question."
        )
    for row, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
        if not isinstance(completion, str):
            raise ValueError(f"completions[{row}] is a {type(completion).__name__}, expected `str`: pass its text.")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"answers[{row}] is {answer!r}, expected a non-empty `str`: drop the row or pass its text."
            )


_GRADERS: dict[tuple, Grader] = {}
_GRADERS_LOCK = threading.Lock()


def grade(
    completions: list[str],
    answers: list[str],
    method: str | Callable[[str, str], float] = "math",
    answer_pattern: str | None = None,
    num_workers: int | None = None,
    time_limit: float = 5.0,
    max_chars: int = 2000,
    reasoning: bool | None = None,
) -> list[float]:
    """
    Grades completions with a [`Grader`] that is kept for the next call with the same settings.

    Args:
        completions (`list[str]`):
            Whole completions.
        answers (`list[str]`):
            Reference answer of each.
        method, answer_pattern, num_workers, time_limit, max_chars, reasoning:
            As in [`Grader`].

    Returns:
        `list[float]`: The reward of each completion, in order: 1.0 for right, 0.0 for wrong, or what a caller's
        function returned.
    """
    settings = (answer_pattern, num_workers, time_limit, max_chars, reasoning)
    # A callable object may have no hash. Its grader keeps it, so that its id stays its own.
    key = (os.getpid(), method if isinstance(method, str) else id(method), *settings)
    with _GRADERS_LOCK:
        if key not in _GRADERS:
            _GRADERS[key] = Grader(method, *settings)
            if len(_GRADERS) > MAX_CACHED:
                _GRADERS.pop(next(iter(_GRADERS))).close()
        grader = _GRADERS[key]
    return grader.grade(completions, answers)


@atexit.register
def _close_cached() -> None:
    for grader in _GRADERS.values():
        grader.close()
