r"""Extracts the final answer from a text: from a `\boxed{}`, after `####`, or after "the answer is". Takes time linear
in the length of the text, because the text is untrusted."""

import re
from collections import deque

from ...reasoning import ANSWER_OPEN, answer_start, graded_text
from .normal_form import strip_marks


_BRACES = re.compile(r"(\\{1,2}f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"(?:\$|\\\)|\s)*(?:,\s*(?:and|or)?|and|or)(?:\$|\\\(|\s)*")
_ANSWER_MARK = re.compile(r"(?:answer[\s*_\"'`]*(?:is\b|:)|答案[\s*_]*(?:是|为|:|：))\s*:?", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"[\s>#*_]*(?:the\s+)?(?:final\s+)?answer[\s*_]*:", re.IGNORECASE)
_ANSWER_HEADING = re.compile(r"(?:the\s+)?(?:final\s+)?answer", re.IGNORECASE)
# `#### Step 2: add them` in the middle of a solution is a Markdown heading.
_HEADING = re.compile(r"(?:step|part|case)\b|.*:$|\d+[.)]\s+[^\W\d]", re.IGNORECASE)
_DELIMITERS = {"", "$", "$$", r"\[", r"\(", "```", "~~~"}
_LONGEST_GAP = 20  # largest number of characters between two boxes that form one answer


def find_marked(text: str) -> str | None:
    r"""
    Finds the content of the last `\boxed{...}` with balanced braces, or else the text after the last `####` in its
    line.

    `\boxed{2} and \boxed{3}` is the single answer `2,3`. A last line `Answer: ...` after the box takes precedence.
    """
    open_braces, answer, answer_at, end = [], None, -1, 0
    # One pass with a stack, because searching for the closing brace of each box takes quadratic time if many boxes are
    # not closed.
    for token in _BRACES.finditer(text):
        if token.group(1) or token.group() == "{":
            open_braces.append((token.start(), token.end(), token.group(1) is not None))
        elif token.group() == "}" and open_braces:
            command, start, is_box = open_braces.pop()
            if is_box and start > answer_at and (inside := text[start : token.start()].strip()):
                joined = answer is not None and 0 <= command - end <= _LONGEST_GAP and inside != answer
                joined = joined and _BETWEEN_BOXES.fullmatch(text, end, command)
                answer, answer_at, end = f"{answer},{inside}" if joined else inside, start, token.end()
    if answer is not None:
        return _answer_line(text[end:]) or answer
    return _after_hashes(text) if "####" in text else None


def _answer_line(text: str) -> str | None:
    """The answer in a last line that begins with "Answer:"."""
    line = text.rstrip().rpartition("\n")[2] if "\n" in text else ""
    if not _ANSWER_LINE.match(line):
        return None
    return strip_marks(line[find_last_mark(line).end() :]) or None


def _after_hashes(text: str) -> str | None:
    line, _, rest = text[text.rindex("####") + 4 :].partition("\n")
    answer = strip_marks(line)
    if _ANSWER_HEADING.fullmatch(answer):
        return _first_line(rest)
    if _HEADING.match(line.strip()) and rest.strip():
        return None
    mark = find_last_mark(line)
    return (strip_marks(line[mark.end() :]) if mark else answer) or None


def _first_line(text: str) -> str | None:
    """The first line that contains more than marks and delimiters, without its marks."""
    lines = (strip_marks(line.group()) for line in re.finditer(r"[^\n]+", text))
    return next((line for line in lines if line not in _DELIMITERS), None)


def find_last_mark(text: str) -> re.Match | None:
    """The last "answer is" or "answer:"."""
    return next(iter(deque(_ANSWER_MARK.finditer(text), maxlen=1)), None)


def extract_answer(text: str, pattern: str | None = None, reasoning: bool | None = None) -> str | None:
    r"""
    Extracts the final answer from a text, in time linear in its length (unless `pattern` takes longer).

    Args:
        text (`str`):
            Completion, or another text that ends with an answer.
        pattern (`str`, *optional*):
            Regular expression. Group 1 of its last match is the answer. Without a pattern, the answer is the first of
            these that exists: the content of the last `\boxed{...}` or `\fbox{...}` with balanced braces, the text
            after the last `####` in its line, and the text after the last "answer is" or "answer:", in its line or in
            the next line with text.
        reasoning (`bool`, *optional*):
            How reasoning delimiters are treated. By default, only the text after the last `</think>` and in the last
            `<answer>` is searched, if the text has these, and a text whose `<think>` is not closed has no answer. With
            `True`, a text without `</think>` has no answer either. With `False`, delimiters are ordinary text.

    Returns:
        `str` or `None`: the answer, or `None` if there is no answer. An answer in a box or from a pattern is returned
        unchanged, other answers without Markdown emphasis, delimiters and punctuation around them.
    """
    whole, text = text, graded_text(text, reasoning)
    if text is None:
        return None
    if pattern is not None:
        last = next(iter(deque(re.finditer(pattern, text), maxlen=1)), None)
        return ((last.group(1) or "").strip() or None) if last else None
    if (marked := find_marked(text)) is not None:
        return marked
    if mark := find_last_mark(text):
        return after_mark(text, mark)
    return (strip_marks(text) or None) if has_answer_delimiter(whole, reasoning) else None


def has_answer_delimiter(text: str, reasoning: bool | None = None) -> bool:
    """Whether the graded part of a text is in `<answer>`, so that all of it is the answer."""
    return reasoning is not False and text.find(ANSWER_OPEN, answer_start(text, reasoning) or 0) >= 0


def after_mark(text: str, mark: re.Match) -> str | None:
    """The answer after a mark that [`find_last_mark`] found in `text`."""
    return _first_line(text[mark.end() :])
