"""The worker's side of grading: what counts as an answer, and the methods that compare an answer with a reference.

Everything here may meet untrusted text, so `main` runs in a process of its own that speaks JSON lines and can be
killed at any moment. Torch is never imported, and math-verify only for the "math" method. Time limits count processor
time, so that a busy machine changes no reward; for a caller's function, which may wait for something, the pool uses
the clock.
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
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from ...io.config_values import import_function


METHODS = ("math", "exact")
MEMORY_LIMIT = 4 << 30  # bytes of address space for a worker that reads untrusted text itself

_BRACES = re.compile(r"(\\{1,2}f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_ANSWER_MARK = re.compile(r"answer\s*(?:is\b|:)\s*:?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?![\d,])")


def find_marked(text: str) -> str | None:
    r"""The last `\boxed{...}` with balanced braces, else what follows the last `####` on its line."""
    open_braces, answer, answer_at = [], None, -1
    # One pass with a stack: searching for the closing brace of each box in turn is quadratic in unclosed boxes.
    for token in _BRACES.finditer(text):
        if token.group(1) or token.group() == "{":
            open_braces.append((token.end(), token.group(1) is not None))
        elif token.group() == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > answer_at and (inside := text[start : token.start()].strip()):
                answer, answer_at = inside, start
    if answer is None and "####" in text:
        answer = text[text.rindex("####") + 4 :].lstrip(" \t").partition("\n")[0].strip() or None
    return answer


def find_last_mark(text: str) -> re.Match | None:
    """The last "answer is" or "answer:"."""
    return next(iter(deque(_ANSWER_MARK.finditer(text), maxlen=1)), None)


def extract_answer(text: str, pattern: str | None = None) -> str | None:
    r"""
    Finds the final answer in a text, in time linear in its length unless `pattern` is not.

    Args:
        text (`str`):
            Completion, or any other text that ends in an answer.
        pattern (`str`, *optional*):
            Regular expression: group 1 of its last match is the answer. Without it the answer is the first found of
            the last `\boxed{...}` or `\fbox{...}` with balanced braces, what follows the last `####` on its line, and
            what follows the last "answer is" or "answer:" on its line, without a trailing period.

    Returns:
        `str` or `None`: The answer as written, stripped of surrounding spaces; `None` if there is none.
    """
    if pattern is not None:
        last = next(iter(deque(re.finditer(pattern, text), maxlen=1)), None)
        return ((last.group(1) or "").strip() or None) if last else None
    if (marked := find_marked(text)) is not None:
        return marked
    if (mark := find_last_mark(text)) is None:
        return None
    return text[mark.end() :].partition("\n")[0].strip(" \t*").removesuffix(".").strip() or None


def normalize_answer(text: str) -> str:
    """The spelling that answers are compared in: no `$`, thousands commas, trailing period or Unicode minus."""
    # `\!` closes up the thousands of `11,\! 111`.
    text = re.sub(r"\\!\s*", "", text).replace("\\$", "").replace("$", "").replace("\u2212", "-").strip()
    text = text.removesuffix(".").rstrip()
    # Only at the start, so that the commas of `(1,234)` stay the commas of a point.
    return text.replace(",", "", thousands.group().count(",")) if (thousands := _THOUSANDS.match(text)) else text


class _Parsed(NamedTuple):
    """What math-verify reads in a text: a sympy object, the text it came from, and whether it ran out of time."""

    expression: Any
    text: str | None
    timed_out: bool = False


class _OutOfTime(BaseException):
    """No `Exception`: sympy and math-verify catch those."""


@contextlib.contextmanager
def processor_time(seconds: float):
    """Interrupts what takes longer than so many seconds of processor time, in the main thread, with `_OutOfTime`."""

    def interrupt(signum, frame):
        raise _OutOfTime

    signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_RATIO = re.compile(r"-?\d{1,100}(?:\.\d{1,100}|\s*/\s*[1-9]\d{0,99})?")


class _Math:
    """The "math" method: math-verify, a second of processor time for each reading and each comparison. Its own alarms
    go by the clock."""

    def __init__(self, pattern: str | None, max_chars: int):
        import math_verify
        from sympy import Rational

        self.pattern, self.max_chars = pattern, max_chars
        self.math_verify, self.rational = math_verify, Rational
        # The first reading builds the grammar, which no answer is to pay for.
        half = math_verify.parse(r"$\frac{1}{2}$", parsing_timeout=None)[0]
        math_verify.verify(half, half + 1, timeout_seconds=None)
        # A reference is graded K times, and continuations of one question share few answers.
        self.parse_bare = functools.lru_cache(maxsize=4096)(self._parse_bare)

    def _parse(self, text: str) -> _Parsed:
        try:
            with processor_time(1.0):
                parsed = self.math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
        except _OutOfTime:
            return _Parsed(None, None, timed_out=True)
        except Exception:  # sympy and its LaTeX parser raise nearly anything on untrusted text
            return _Parsed(None, None)
        expression = parsed[0] if parsed and not isinstance(parsed[0], str) else None
        return _Parsed(expression, parsed[-1] if parsed and isinstance(parsed[-1], str) else None)

    def _parse_bare(self, answer: str) -> _Parsed:
        """Reads an answer that stands alone, spelled by `normalize_answer`."""
        if len(answer) > self.max_chars:
            return _Parsed(None, answer)
        # math-verify finds numbers anywhere, but LaTeX only in an environment.
        parsed = self._parse(answer if _PLAIN_NUMBER.fullmatch(answer) else rf"\boxed{{{answer}}}")
        # What it cannot read it may still cut short: then the answer as written is what is compared.
        return parsed if parsed.expression is not None else parsed._replace(text=answer)

    def _final(self, completion: str) -> _Parsed:
        """The last answer of a completion; `text` is `None` if there is none."""
        marked = extract_answer(completion, self.pattern) if self.pattern else find_marked(completion)
        if marked is not None or self.pattern:
            # Only the last box: math-verify would read several as one set.
            return self._alone(marked)
        tail = completion[-self.max_chars :].replace("\u2212", "-")  # math-verify drops a Unicode minus
        mark = find_last_mark(tail)
        # From the last "answer is" on, as math-verify prefers an earlier "final answer is" to a later correction.
        parsed = self._parse(tail[mark.start() :] if mark else tail)
        if parsed.text is None and mark and not parsed.timed_out:
            return self._alone(extract_answer(tail[mark.start() :]))
        return parsed

    def _alone(self, answer: str | None) -> _Parsed:
        answer = normalize_answer(answer or "")
        return self.parse_bare(answer) if 0 < len(answer) <= self.max_chars else _Parsed(None, None)

    def _same(self, gold: _Parsed, final: _Parsed) -> tuple[bool, bool]:
        """Whether the answers agree, and whether the question took too long."""
        if gold.text == final.text or gold.expression is None or final.expression is None:
            return gold.text == final.text, False
        try:
            with processor_time(1.0):
                verify = self.math_verify.verify
                return verify(gold.expression, final.expression, timeout_seconds=None, raise_on_error=True), False
        except _OutOfTime:
            return False, True
        except Exception:  # as in `_parse`
            return False, False

    def _spell(self, parsed: _Parsed) -> str:
        """One spelling for equal rational numbers; other answers as written, so that they can be read again."""
        value = parsed.expression
        if isinstance(value, self.rational) and max(abs(value.p), value.q) < 10**100:
            return str(value)
        text = " ".join(parsed.text.split())
        return str(Fraction("".join(text.split()))) if _RATIO.fullmatch(text) else text

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        final = self._final(completion)
        if final.text is None:
            return 0.0, None, final.timed_out
        gold = self.parse_bare(normalize_answer(find_marked(answer) or answer))
        right, slow = self._same(gold, final)
        return float(right), self._spell(final), not right and (final.timed_out or gold.timed_out or slow)

    def equivalent(self, left: str, right: str) -> tuple[float, str | None, bool]:
        parsed_left, parsed_right = (self.parse_bare(normalize_answer(text)) for text in (left, right))
        same, slow = self._same(parsed_left, parsed_right)
        if not same and not slow:  # math-verify reads `x>1` as an interval from one side only
            same, slow = self._same(parsed_right, parsed_left)
        return float(same), None, not same and (parsed_left.timed_out or parsed_right.timed_out or slow)


class _Exact:
    """The "exact" method: equal spelling. In a worker too, as a caller's pattern may take for ever on some text."""

    def __init__(self, pattern: str | None):
        self.pattern = pattern

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        final = normalize_answer(extract_answer(completion, self.pattern) or "")
        if not final:
            return 0.0, None, False
        return float(final == normalize_answer(find_marked(answer) or answer)), final, False


class FunctionGrader(_Exact):
    """A caller's function: its float is the reward. `function` is the callable itself or its import path."""

    def __init__(self, function: str | Callable[[str, str], float], pattern: str | None):
        super().__init__(pattern)
        self.function = import_function(function) if isinstance(function, str) else function

    def grade(self, completion: str, answer: str) -> tuple[float, str | None, bool]:
        reward = float(self.function(completion, answer))
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}, expected a finite number")
        return reward, normalize_answer(extract_answer(completion, self.pattern) or "") or None, False


def _pump(requests, inbox: queue.SimpleQueue) -> None:
    """Reads beside the grading, so that the end of the input (the caller is gone) ends a worker that is still busy."""
    for line in requests:
        inbox.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """What a worker process runs: reads settings, then batches; writes a line when ready, then one for each item."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A graded function may print, or read: neither may touch the protocol.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle

    def reply(message: dict | list) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    settings = json.loads(requests.readline() or sys.exit())
    method, pattern = settings["method"], settings["pattern"]
    trusted = method not in METHODS
    try:
        if method == "math":
            grader = _Math(pattern, settings["max_chars"])
        else:
            grader = FunctionGrader(method, pattern) if trusted else _Exact(pattern)
    except Exception as error:  # importing runs the caller's code
        return reply({"error": f"{type(error).__name__}: {error}"})
    if not trusted:  # a caller's function may well use torch, which reserves more than this
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
                # Kept by the kernel, which ends this process then: a call into C may hold off every thread and signal.
                signal.setitimer(signal.ITIMER_PROF, settings["time_limit"])
            try:
                reward, extracted, timed_out = getattr(grader, operation)(left, right)
            except (Exception, SystemExit) as caught:
                # A caller's function that fails is the caller's to see; text that breaks a parser is a wrong answer.
                error = f"{type(caught).__name__}: {caught}" if trusted else None
            reply([index, reward, extracted, timed_out, error])


if __name__ == "__main__":
    main()
