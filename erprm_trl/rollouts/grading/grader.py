"""Grades complete completions against reference answers. The rewards (1 = right) of solutions and continuations come
from here.

Model output is untrusted, and is never executed. It is parsed in worker processes, which are killed if they exceed
their time limit.
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

MAX_CACHED = 8  # number of graders that `grade` keeps for later calls
STATED = "stated"  # grading of given solutions by the correctness that their source states
ENVIRONMENT = "environment"  # grading of conversations by `get_reward` of their environments


def _import_path(function: Callable) -> str | None:
    """Import path of a function, or `None` if a worker cannot import it (a lambda, a closure, a function of a
    script)."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    importable = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if importable is function and module != "__main__" else None


class Grader:
    r"""
    Grades completions against reference answers in worker processes, which start at the first call.

    With `"math"` and `"exact"`, a completion without an answer has reward 0. `num_timeouts` counts the answers that
    got reward 0 because they took too long or crashed their worker.

    Args:
        method (`str` or `Callable`, *optional*, defaults to `"math"`):
            How a completion is compared with its reference:

            - `"math"`: compares mathematically, with math-verify, which parses LaTeX and numbers. The answer is the
              last marked answer (see [`extract_answer`]), or else the last number or formula. Currency, unit and
              percent sign are ignored in the answer and in the reference: `#### 18 dollars`, `\boxed{18\text{ cm}}`
              and `18` are equal. A percentage of at most 100 also equals its fraction: `50\%` is `1/2`.
            - `"exact"`: compares the text of the extracted answer and of the reference, after removing Markdown
              emphasis, `$`, parentheses and punctuation around them, and thousands commas. Units are compared.
            - a function `f(completion, answer)` that returns the reward as a float, or its import path
              `"package.module:function"`. It may be any callable object. A callable that cannot be imported by name (a
              lambda, a closure, a `functools.partial`, a function of the running script) runs in this process, without
              a time limit.
        answer_pattern (`str`, *optional*):
            Regular expression. Group 1 of its last match is the final answer, see [`extract_answer`].
        num_workers (`int`, *optional*, defaults to at most 4):
            Number of worker processes.
        time_limit (`float`, *optional*, defaults to `5.0`):
            Maximum time per answer, in seconds. An answer that takes longer gets reward 0. The limit is in processor
            time, so that rewards do not depend on the load of the machine. For your own function, it is in elapsed
            time.
        max_chars (`int`, *optional*, defaults to `2000`):
            Maximum length of an answer for `"math"`, in characters. If a completion has no marked answer, only this
            many characters at its end are read.
        reasoning (`bool`, *optional*):
            How reasoning delimiters are treated. By default, only the text after the last `</think>` is graded, and in
            it only the last `<answer>`, if the completion has these. A completion whose `<think>` is not closed has no
            answer. Use `True` for completions that begin inside `<think>`: without a `</think>` they have no answer.
            With `False`, delimiters are ordinary text. Your own function gets the complete completion. With `True`, it
            gets only the graded part, and is not called if there is no such part.
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
                "import path 'package.module:function'. Pass one of these."
            )
        if isinstance(method, str) and method not in METHODS and not re.fullmatch(r"[\w.]+:[\w.]+", method):
            raise ValueError(
                f"`method` is {method!r}, expected one of {', '.join(map(repr, METHODS))}, a function, or its import "
                "path 'package.module:function'. Pass one of these."
            )
        if answer_pattern is not None and _num_groups(answer_pattern) < 1:
            raise ValueError(
                f"`answer_pattern` {answer_pattern!r} has no group, expected the answer in group 1. Put parentheses "
                "around the part that matches the answer."
            )
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        if reasoning not in (None, True, False):
            raise ValueError(f"`reasoning` is {reasoning!r}, expected None, True or False. Pass one of these.")
        if num_workers < 1 or time_limit <= 0 or max_chars < 1:
            raise ValueError(
                f"Got num_workers={num_workers}, time_limit={time_limit}, max_chars={max_chars}, expected positive "
                "numbers. Leave an argument out to use its default."
            )
        self.method, self.answer_pattern, self.reasoning = method, answer_pattern, reasoning
        path = method if isinstance(method, str) else _import_path(method)
        self._here = None
        if path is None:
            self._here = FunctionGrader(method, answer_pattern, reasoning)
            logger.warning(
                f"The grading function {grading_name(method)!r} cannot be imported by name, so it runs in this "
                "process, without a time limit. To run it in workers, pass a function of a module, or its import path "
                "'package.module:function'."
            )
        settings = {"method": path, "pattern": answer_pattern, "max_chars": max_chars, "time_limit": time_limit}
        settings["reasoning"] = reasoning
        self._pool = GradingPool(settings, num_workers, time_limit)

    @property
    def num_timeouts(self) -> int:
        """Number of answers that got reward 0 because they took too long or crashed their worker."""
        return self._pool.num_timeouts

    @property
    def uses_workers(self) -> bool:
        """Whether worker processes grade. A callable that they cannot import runs in the calling thread."""
        return self._here is None

    def grade(self, completions: list[str], answers: list[str]) -> list[float]:
        """Grades completions, and returns their rewards in order. See [`~Grader.grade_and_extract`]."""
        return self.grade_and_extract(completions, answers)[0]

    def grade_and_extract(self, completions: list[str], answers: list[str]) -> tuple[list[float], list[str | None]]:
        """
        Grades completions, and returns the rewards and the final answers. Identical pairs are graded once.

        Args:
            completions (`list[str]`):
                Complete completions.
            answers (`list[str]`):
                Reference answer of each completion, either alone, in a `\\boxed{}`, or after `####`.

        Returns:
            `tuple[list[float], list[str | None]]`: the rewards and the final answers. The reward is 1.0 for right and
            0.0 for wrong, or the result of your own function. A final answer is `None` if the completion has no
            answer. Equal rational numbers have the same spelling; use [`~Grader.equivalent`] to compare any two
            answers.
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
                f"{message}. Expected a finite float. Return 0.0 for a completion that the function cannot parse."
            ) from error.__cause__
        outcome_of = dict(zip(unique, outcomes, strict=True))
        if self.method in METHODS and len(unique) >= 32 and not any(extracted for _, extracted in outcomes):
            logger.warning(
                f"None of {len(unique)} completions has a final answer, so all got reward 0 (method {self.method!r}, "
                f"answer_pattern {self.answer_pattern!r}). Set an answer_pattern that matches the policy's answers."
            )
        return [outcome_of[pair][0] for pair in pairs], [outcome_of[pair][1] for pair in pairs]

    def _grade_here(self, index: int, completion: str, answer: str) -> tuple[float, str | None]:
        try:
            return self._here.grade(completion, answer)[:2]
        except Exception as error:
            raise CallerError(index, f"{type(error).__name__}: {error}") from error

    def equivalent(self, left: str, right: str) -> bool:
        """
        Compares two final answers.

        Args:
            left (`str`), right (`str`):
                Final answers.

        Returns:
            `bool`: whether the answers are equal, mathematically for `"math"`, and in their spelling otherwise.
        """
        for name, answer in (("left", left), ("right", right)):
            if not isinstance(answer, str):
                raise TypeError(
                    f"`{name}` is a {type(answer).__name__}, expected a final answer as `str`. Convert it to text."
                )
        spell = normal_form if self.method == "math" else normalize_answer
        if spell(left) == spell(right):
            return True
        return self.method == "math" and self._pool.run([("equivalent", left, right)])[0][0] == 1.0

    def cancel(self) -> None:
        """Lets calls in other threads end with a `RuntimeError`. Call `close` afterwards."""
        self._pool.cancel()

    def close(self) -> None:
        """Ends the workers. A later call starts new workers."""
        self._pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def comparison_method(grading: str | Callable[[str, str], float] | None) -> str | Callable[[str, str], float]:
    """The `method` of a [`Grader`] that compares the final answers of a collection. Without answers, and if nothing
    was graded, final answers are compared mathematically."""
    return "math" if grading in (None, STATED, ENVIRONMENT) else grading


def grading_name(method: str | Callable[[str, str], float] | None) -> str | None:
    """
    Name of a grading method in a manifest. It is readable, and the same in every process.

    Args:
        method (`str` or `Callable`, *optional*):
            See [`Grader`].

    Returns:
        `str` or `None`: a string unchanged, `"module:function"` for a function, `"module:Class"` for a callable
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
    # The representation of other objects may contain their memory address.
    return repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _num_groups(answer_pattern: str) -> int:
    try:
        return re.compile(answer_pattern).groups
    except re.error as error:
        raise ValueError(
            f"`answer_pattern` {answer_pattern!r} is no regular expression ({error}), expected one with the answer in "
            "group 1. Correct it."
        ) from error


def _check(completions: list[str], answers: list[str]) -> None:
    for name, texts in (("completions", completions), ("answers", answers)):
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
            raise TypeError(
                f"`{name}` is a {type(texts).__name__} ({str(texts)[:60]!r}), expected a list of texts. Pass "
                f"`{name}=[...]`, also for a single text."
            )
    if len(completions) != len(answers):
        raise ValueError(
            f"Got {len(completions)} completions and {len(answers)} answers, expected one answer for each completion. "
            "Repeat an answer for every completion of its question."
        )
    for row, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
        if not isinstance(completion, str):
            raise ValueError(f"completions[{row}] is a {type(completion).__name__}, expected `str`. Pass its text.")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"answers[{row}] is {answer!r}, expected a non-empty `str`. Drop the row, or pass its text."
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
    Grades completions with a [`Grader`] that is kept for later calls with the same settings.

    Args:
        completions (`list[str]`):
            Complete completions.
        answers (`list[str]`):
            Reference answer of each completion.
        method, answer_pattern, num_workers, time_limit, max_chars, reasoning:
            See [`Grader`].

    Returns:
        `list[float]`: the reward of each completion, in order: 1.0 for right and 0.0 for wrong, or the result of your
        own function.
    """
    settings = (answer_pattern, num_workers, time_limit, max_chars, reasoning)
    # The id is used because a callable object may not be hashable. The grader keeps the object alive, so the id stays
    # unique.
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
