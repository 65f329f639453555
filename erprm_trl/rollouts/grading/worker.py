"""The code of a grading worker: the methods that compare the answer of a completion with a reference.

The text may be untrusted, so `main` runs in a separate process, which communicates by JSON lines and can be killed at
any moment. Torch is never imported, and math-verify only for the method "math". Time limits are in processor time, so
that rewards do not depend on the load of the machine. A caller's function may wait for other processes, so the pool
limits its elapsed time instead.
"""

import contextlib
import functools
import json
import math
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from ...io.config_values import import_function
from ...reasoning import graded_text
from .extraction import after_mark, extract_answer, find_last_mark, find_marked, has_answer_delimiter
from .normal_form import (
    choice_letter,
    is_continued_number,
    is_open_sequence,
    is_percentage,
    is_uncomputed,
    is_words,
    normal_form,
    normalize_answer,
    number_base,
    parts_of,
    plain_characters,
    same_words,
    states,
    unit_of,
)


METHODS = ("math", "exact")
MEMORY_LIMIT = 4 << 30  # bytes of address space of a worker with the method "math" or "exact"


class _Parsed(NamedTuple):
    """The result of math-verify for a text: a sympy expression, the text of the answer, and whether parsing took too
    long. A percent sign is removed from the expression and the text."""

    expression: Any
    text: str | None
    timed_out: bool = False
    is_percentage: bool = False


class _OutOfTime(BaseException):
    """Not an `Exception`, because sympy and math-verify catch every `Exception`."""


@contextlib.contextmanager
def processor_time(seconds: float):
    """Context that raises `_OutOfTime` after this many seconds of processor time, in the main thread."""

    def interrupt(signum, frame):
        raise _OutOfTime

    signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


_LONGEST_FORMULA = 100  # characters
_REMARK = re.compile(r"-?[\d./,]+ \([-\d./,]+%?\)")  # a number with another one in parentheses: `1/4 (25%)`
# A single formula without words: `(5, 3)`, `2^{10}`, `5x + 1`, but not `5 apples` or `5. 2 + 3 = 5`.
# Each text can match in only one way, so that the time is linear.
_FORMULA = re.compile(r"(?!.*[.;:?!]\s)(?:\\[A-Za-z]+(?![A-Za-z])|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[^A-Za-z\\$])+")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_RATIO = re.compile(r"-?\d{1,100}(?:\.\d{1,100}|\s*/\s*[1-9]\d{0,99})?")


class _Math:
    """The method "math". Uses math-verify, with one second of processor time per parse and per comparison. The
    timeouts of math-verify itself are not used, because they are in elapsed time."""

    def __init__(self, pattern: str | None, max_chars: int, reasoning: bool | None = None):
        import math_verify
        from sympy import Rational

        self.pattern, self.max_chars, self.reasoning = pattern, max_chars, reasoning
        self.math_verify, self.rational = math_verify, Rational
        # The first parse builds the grammar, which must not count for the time of an answer.
        half = math_verify.parse(r"$\frac{1}{2}$", parsing_timeout=None)[0]
        math_verify.verify(half, half + 1, timeout_seconds=None)
        # The cache helps because a reference is parsed K times, and the continuations of a question have few answers.
        self.parse_bare = functools.lru_cache(maxsize=4096)(self._parse_bare)

    def _parse(self, text: str) -> _Parsed:
        try:
            with processor_time(1.0):
                parsed = self.math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
        except _OutOfTime:
            return _Parsed(None, None, timed_out=True)
        except Exception:  # sympy and its LaTeX parser may raise any error on untrusted text
            return _Parsed(None, None)
        expression = parsed[0] if parsed and not isinstance(parsed[0], str) else None
        return _Parsed(expression, parsed[-1] if parsed and isinstance(parsed[-1], str) else None)

    def _parse_bare(self, text: str) -> _Parsed:
        """Parses the text of an answer without other text around it."""
        answer = normal_form(text)
        # math-verify parses words as products of letters, and ignores the dots of a sequence.
        if len(answer) > self.max_chars or is_words(answer) or is_open_sequence(answer):
            return _Parsed(None, answer)
        # math-verify finds numbers anywhere, but LaTeX only inside delimiters.
        parsed = self._parse(answer if _PLAIN_NUMBER.fullmatch(answer) else rf"\boxed{{{answer}}}")
        # If math-verify cannot parse the answer, it may return a part of the text. The full text is compared instead.
        parsed = parsed if parsed.expression is not None else parsed._replace(text=answer)
        return parsed._replace(is_percentage=is_percentage(text))

    def _final(self, completion: str, is_answer: bool) -> _Parsed:
        """Parses the last answer of a completion. `text` is `None` if there is no answer. `is_answer` is whether the
        completion is the content of `<answer>`."""
        marked = extract_answer(completion, self.pattern, False) if self.pattern else find_marked(completion)
        if marked is not None or self.pattern:
            # Only the content of the box is parsed, because math-verify would parse several boxes as one set.
            return self._alone(marked)
        tail = plain_characters(completion[-self.max_chars :])  # math-verify drops a Unicode minus
        mark = find_last_mark(tail)
        after = after_mark(tail, mark) if mark else None
        number = after and after.rstrip("!")  # in a sentence, this is an exclamation mark and not a factorial
        normal = normal_form(number or "")
        # math-verify reads `1,5 liters` and `1/4 (25%)` better in the sentence.
        is_clear = number and not _REMARK.match(number)
        if _PLAIN_NUMBER.fullmatch(normal) or (is_clear and unit_of(number) and "," not in normal):
            return self._alone(number)
        if is_clear and len(after) <= _LONGEST_FORMULA and _FORMULA.fullmatch(after):
            # In plain text, math-verify finds only numbers: 10 in `10^{-3}`, and 3 in `(5, 3)`.
            alone = self._alone(after)
            if alone.expression is not None:
                return alone
        if after is not None and (is_continued_number(after) or choice_letter(after)):
            return self._alone(after)
        if is_answer and not mark:
            alone = self._alone(completion.strip())
            if alone.expression is not None or is_words(alone.text or ""):
                return alone
        # Parsing starts at the last "answer is", because math-verify prefers an earlier "final answer is" to a later
        # correction.
        parsed = self._parse(tail[mark.start() :] if mark else tail)
        if parsed.text is None and mark and not parsed.timed_out:
            return self._alone(after)
        normal = normal_form(parsed.text or "")
        is_quantity = _PLAIN_NUMBER.fullmatch(normal) and not _PLAIN_NUMBER.fullmatch(parsed.text)
        return self._alone(parsed.text) if is_quantity or is_words(normal) else parsed

    def _alone(self, answer: str | None) -> _Parsed:
        answer = answer or ""
        is_readable = len(answer) <= self.max_chars and normal_form(answer)
        return self.parse_bare(answer) if is_readable else _Parsed(None, None)

    def _same(self, gold: _Parsed, final: _Parsed) -> tuple[bool, bool]:
        """Whether the answers are equal, and whether the comparison took too long."""
        letter = choice_letter(final.text or "")
        if same_words(gold.text or "", final.text or "") or (letter is not None and letter == gold.text):
            return True, False
        bases = {number_base(gold.text or ""), number_base(final.text or "")} - {None}
        if gold.expression is None or final.expression is None or len(bases) == 2:
            return False, False
        try:
            with processor_time(1.0):
                verify = functools.partial(self.math_verify.verify, timeout_seconds=None, raise_on_error=True)
                if verify(gold.expression, final.expression):
                    return not self._far_apart(gold.expression, final.expression), False
                share, other = (gold, final) if gold.is_percentage else (final, gold)
                if gold.is_percentage == final.is_percentage or not _RATIO.fullmatch(share.text or ""):
                    return False, False
                share = Fraction("".join(share.text.split())) / 100
                return abs(share) <= 1 and verify(self.rational(*share.as_integer_ratio()), other.expression), False
        except _OutOfTime:
            return False, True
        except Exception:  # as in `_parse`
            return False, False

    def _far_apart(self, left: Any, right: Any) -> bool:
        """Whether two numbers have a large relative difference. Needed because math-verify rounds to six decimals,
        where `2^{-98}` is 0."""
        if not (getattr(left, "is_number", False) and getattr(right, "is_number", False)):
            return False
        values = [left.evalf(20), right.evalf(20), (left - right).evalf(20)]
        if not all(value.is_Float or value.is_Integer for value in values):  # e.g. a percentage of math-verify
            return False
        left, right, difference = map(abs, values)
        return bool(difference > 1e-3 * max(left, right))

    def _value(self, parsed: _Parsed) -> Fraction | None:
        """The value of an answer that is a number, or `None` for other answers and for expressions that are not
        computed."""
        text = normal_form(parsed.text or "")
        if _PLAIN_NUMBER.fullmatch(text):
            return Fraction(text) if len(text) <= 100 else None
        value = parsed.expression
        is_short = isinstance(value, self.rational) and max(abs(value.p), value.q) < 10**100
        value = Fraction(int(value.p), int(value.q)) if is_short else None
        return None if value is None or is_uncomputed(text, value) else value

    def _is_no_answer(self, final: _Parsed, gold: _Parsed, text: str) -> bool:
        """Whether an answer that equals the reference is an expression such as `(68+47)*8` for the number 920. A
        policy could otherwise learn to repeat the question. The value may stand after the expression in `text`."""
        parts, golds = [final.text or ""], [gold]
        if self._value(gold) is None:  # perhaps a point or a list of numbers
            parts, golds = parts_of(final.text or ""), [self.parse_bare(part) for part in parts_of(gold.text or "")]
        values = [self._value(gold) for gold in golds]
        if len(parts) != len(golds) or None in values:
            return False
        values += [value / 100 for value, gold in zip(values, golds, strict=True) if gold.is_percentage]
        if not any(all(is_uncomputed(part, value) for value in values) for part in parts):
            return False
        after = plain_characters(text[_answer_position(text) :])
        return sum(states(after, value) for value in values) < len(parts)

    def _spell(self, parsed: _Parsed) -> str:
        """The same spelling for equal rational numbers. Other answers are not changed, so that they can be parsed
        again."""
        if (value := self._value(parsed)) is not None:
            return str(value)
        text = " ".join(parsed.text.split())
        return str(Fraction("".join(text.split()))) if _RATIO.fullmatch(text) else text

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        text = graded_text(completion, self.reasoning)
        final = _Parsed(None, None)
        if text is not None:
            final = self._final(text, has_answer_delimiter(completion, self.reasoning))
        if final.text is None:
            return 0.0, None, final.timed_out
        gold = self.parse_bare(reference_answer(answer, self.reasoning))
        right, slow = self._same(gold, final)
        right = right and not self._is_no_answer(final, gold, text)
        return float(right), self._spell(final), not right and (final.timed_out or gold.timed_out or slow)

    def equivalent(self, left: str, right: str) -> tuple[float, str | None, bool]:
        parsed_left, parsed_right = self.parse_bare(left), self.parse_bare(right)
        same, slow = self._same(parsed_left, parsed_right)
        if not same and not slow:  # math-verify compares `x>1` with an interval in one order only
            same, slow = self._same(parsed_right, parsed_left)
        if self._is_no_answer(parsed_left, parsed_right, left) or self._is_no_answer(parsed_right, parsed_left, right):
            same = False
        return float(same), None, not same and (parsed_left.timed_out or parsed_right.timed_out or slow)


class _Exact:
    """The method "exact", which compares spellings. It also runs in a worker, because a caller's pattern may take very
    long on some texts."""

    def __init__(self, pattern: str | None, reasoning: bool | None = None):
        self.pattern, self.reasoning = pattern, reasoning

    def final(self, completion: str) -> str | None:
        """The final answer in the spelling for comparison."""
        return normalize_answer(extract_answer(completion, self.pattern, self.reasoning) or "") or None

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        final = self.final(completion)
        right = final is not None and final == normalize_answer(reference_answer(answer, self.reasoning))
        return float(right), final, False


class FunctionGrader(_Exact):
    """A caller's function, which returns the reward. `function` is the callable or its import path."""

    def __init__(
        self, function: str | Callable[[str, str], float], pattern: str | None, reasoning: bool | None = None
    ):
        super().__init__(pattern, reasoning)
        self.function = import_function(function) if isinstance(function, str) else function

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        text = graded_text(completion, True) if self.reasoning else completion
        if text is None:
            return 0.0, None, False
        reward = float(self.function(text, answer))
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}, expected a finite number")
        return reward, self.final(completion), False


def _answer_position(text: str) -> int:
    """Where the last marked answer of a text begins."""
    mark = find_last_mark(text)
    return max(text.rfind("boxed"), text.rfind("####"), mark.start() if mark else -1, 0)


def reference_answer(text: str, reasoning: bool | None = None) -> str:
    """Extracts the answer from a reference, which is either the answer alone, or marked as in a completion."""
    # A reference without delimiters is not unfinished thinking.
    return extract_answer(text, reasoning=None if reasoning else reasoning) or text


def _pump(requests, inbox: queue.SimpleQueue) -> None:
    """Reads requests in a thread, so that the worker ends when its input ends (the caller is gone), even if busy."""
    for line in requests:
        inbox.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Runs a worker process. It reads settings and then batches. It writes one line when it is ready, and then one
    line per item."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A caller's function may print or read, which must not disturb the protocol.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C

    def reply(message: dict | list) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    settings = json.loads(requests.readline() or sys.exit())
    method, pattern, reasoning = settings["method"], settings["pattern"], settings.get("reasoning")
    trusted = method not in METHODS
    try:
        if method == "math":
            grader = _Math(pattern, settings["max_chars"], reasoning)
        else:
            grader = FunctionGrader(method, pattern, reasoning) if trusted else _Exact(pattern, reasoning)
    except Exception as error:  # importing the function runs code of the caller, which may raise any error
        return reply({"error": f"{type(error).__name__}: {error}"})
    if not trusted:  # a caller's function may use torch, which reserves more address space than this
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    reply({"ready": True})

    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(requests, inbox), daemon=True).start()
    while True:
        for index, operation, left, right in inbox.get():
            reward, extracted, timed_out, error = 0.0, None, False, None
            if not trusted:
                # The kernel enforces this limit by ending the process. Threads and signal handlers could not, because
                # a call into C may block them.
                signal.setitimer(signal.ITIMER_PROF, settings["time_limit"])
            try:
                reward, extracted, timed_out = getattr(grader, operation)(left, right)
            except (Exception, SystemExit) as caught:
                # An error of a caller's function is reported to the caller. A text that breaks a parser is a wrong
                # answer.
                error = f"{type(caught).__name__}: {caught}" if trusted else None
            reply([index, reward, extracted, timed_out, error])


if __name__ == "__main__":
    main()
