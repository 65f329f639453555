"""Finds formulas and code in the text of questions and solutions, so that a page can show them as such.

Formulas are LaTeX in `\\(...\\)`, `\\[...\\]`, `$$...$$`, `$...$`, `\\boxed{...}` or an environment such as `align`.
Code is Markdown: fenced blocks, which may span several steps, and `` `inline code` ``. All other text stays as it is.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .formulas import ENVIRONMENTS, MAX_CHARACTERS, MAX_DEPTH, MAX_PAGE_CHARACTERS, mathml_tree


FENCE = re.compile(r"^[ \t]*```[^`\n]*$\n?", re.MULTILINE)
_OPENING = re.compile(r"\\[(\[]|(?<![\\\w$])\$\$?(?!\$)|\\boxed\s*\{|\\begin\s*\{([A-Za-z]{1,16}\*?)\}|`(?!`)")
_TEXT_IN_FORMULA = re.compile(r"\\(?:text\w*|mbox|hbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WORD = re.compile(r"(?<![A-Za-z])(?![A-Z]+(?![a-z]))[A-Za-z]{3,}")  # but ABC is a triangle

Part = str | list[Any]  # a text, ["math", number of the formula] or ["code", text]


class RichText:
    """
    Splits the texts of a page into parts, and collects its formulas.

    Each distinct formula is converted once. Formulas stay text when those of the page already have
    [`MAX_PAGE_CHARACTERS`] characters in all.

    Attributes:
        formulas (`list[dict]`): Formulas of the page, each with its `source` and its `math` element.
    """

    def __init__(self) -> None:
        self.formulas: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, bool], int | None] = {}
        self._room = MAX_PAGE_CHARACTERS

    def text(self, text: str) -> str | list[Part]:
        """The parts of a text, or the text itself if it is plain."""
        return self.steps([text])[0]

    def answer(self, text: str | None) -> str | list[Part] | None:
        """The parts of a final answer, which is often a formula without delimiters."""
        if text and "\\" in text and (number := self._number(text, text, False)) is not None:
            return [["math", number]]
        return text if text is None else self.text(text)

    def steps(self, steps: Sequence[str]) -> list[str | list[Part]]:
        """The parts of each step of a solution, or the step itself if it is plain. A fenced block of code may begin in
        a step and end in a later one."""
        in_code, split = False, []
        for step in steps:
            parts: list[Part] = []
            place = 0
            for fence in FENCE.finditer(step):
                parts += self._parts(step[place : fence.start()], in_code)
                in_code, place = not in_code, fence.end()
            parts += self._parts(step[place:], in_code)
            split.append(step if parts in ([], [step]) else parts)
        return split

    def _parts(self, text: str, in_code: bool) -> list[Part]:
        if in_code:
            return [["code", text]] if text.strip() else []
        parts: list[Part] = []
        place = 0
        for start, end, part in self._special(text):
            parts += [text[place:start]] * (start > place) + [part]
            place = end
        return parts + [text[place:]] * (place < len(text))

    def _special(self, text: str) -> Iterator[tuple[int, int, Part]]:
        """The formulas and the inline code of a text, from left to right, with their places."""
        place = 0
        while match := _OPENING.search(text, place):
            start, place = match.start(), match.end()
            opening = match[0]
            if opening == "`":
                end = text.find("`", place, place + MAX_CHARACTERS)
                if end > place and "\n" not in text[place:end]:
                    yield start, end + 1, ["code", text[place:end]]
                    place = end + 1
                continue
            span = _formula(text, match)
            if span is None:
                continue
            source, end = span
            display = opening in ("\\[", "$$") or opening.startswith("\\begin")
            if (number := self._number(text[start:end], source, display)) is not None:
                yield start, end, ["math", number]
                place = end

    def _number(self, source: str, latex: str, display: bool) -> int | None:
        """The number of a formula among those of the page, `None` if it cannot be shown as one."""
        key = (source, display)
        if key not in self._numbers:
            tree = mathml_tree(latex, display) if len(latex) <= self._room else None
            self._room -= len(latex)
            self._numbers[key] = None if tree is None else len(self.formulas)
            if tree is not None:
                self.formulas.append({"source": source, "math": tree})
        return self._numbers[key]


def _formula(text: str, opening: re.Match) -> tuple[str, int] | None:
    """The LaTeX of a formula that opens at a match, and where the formula ends; `None` if it does not close."""
    start = opening.end()
    limit = start + MAX_CHARACTERS
    if opening[0] == "$":
        return _dollars(text, start)
    if opening[1] is not None:  # \begin{...}
        closing = f"\\end{{{opening[1]}}}"
        end = text.find(closing, start, limit) + len(closing)
        is_known = opening[1] in ENVIRONMENTS and end >= start + len(closing)
        return (text[opening.start() : end], end) if is_known else None
    if opening[0].endswith("{"):  # \boxed{...}
        depth = 1
        for brace in _BRACE.finditer(text, start, limit):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not 0 < depth <= MAX_DEPTH:
                break
        return (text[opening.start() : brace.end()], brace.end()) if depth == 0 else None
    closing = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}[opening[0]]
    end = text.find(closing, start, limit)
    return None if end < 0 else (text[start:end], end + len(closing))


def _dollars(text: str, start: int) -> tuple[str, int] | None:
    """
    `$...$`, unless the signs stand for money.

    It is a formula if no space follows the first sign or precedes the second, no letter or digit follows the second,
    the formula does not end with an operator, and it holds no word of three or more letters outside of commands, where
    words in capitals do not count. So "$5 and $7", "$5-$7", "2*$5=$<<10>>10" and "5$ for you and 7$" are text.
    """
    end = re.compile(r"(?<!\\)\$|\n\s*\n").search(text, start, start + MAX_CHARACTERS)
    if end is None or end[0] != "$":
        return None
    latex = text[start : end.start()]
    follows = text[end.end() : end.end() + 1]
    if not latex or latex[0].isspace() or latex[-1] in " \t\n=+-*/" or follows.isalnum() or follows == "$":
        return None
    return None if _WORD.search(_TEXT_IN_FORMULA.sub(" ", latex)) else (latex, end.end())
