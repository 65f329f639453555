"""Splits the text of a solution into steps, and cleans the steps. Works on text only, not on tokens."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from .reasoning import ANSWER_CLOSE, ANSWER_OPEN, STEPS_OF, THINK_CLOSE, THINK_OPEN, answer_start


TURNS = "turns"  # steps are the turns of a conversation, and a text is one step
NAMED_SPLITTERS = ("whole_lines", "newline", "blank_line", "step", "raw_lines", TURNS)
MIN_CHARACTERS = 12  # with "whole_lines", a shorter line ("So:", "---", "#### 18") is not a separate step
_FIRST_IDEOGRAPH = "\u2e80"
_LONGEST_START = 1000  # largest number of characters that are joined to make the first step long enough

_TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_LINE_FEED = re.compile(r"\n")
# `\s` without the line feed includes carriage returns and no-break spaces.
_LINE_END = re.compile(r"\n(?:[^\S\n]*\n)*")
_BLANK_LINE = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_INDENT = re.compile(r"[^\S\n]*")
_PARAGRAPH_END = r"\n[^\S\n]*\n"

_STEP_HEADING = re.compile(
    r"^[ \t#*>-]*(?:(?P<named>step[ \t]*\d+[*_ \t]*[:.)\-\u2013\u2014])|\d{1,3}\.(?=[\s*]))",
    re.MULTILINE | re.IGNORECASE,
)
_OPEN_HEADING = re.compile(r"(?:^|(?<=\n))[ \t#*>-]*(?:step[ \t]*\d*|\d{1,3}\.)$", re.IGNORECASE)
_STEP_WORDS = tuple(
    f"\n{mark}{word}" for mark in ("", "**", "## ", "### ", "#### ", "> ", "- ") for word in ("Step", "step", "STEP")
)
_STEP_NUMBERS = tuple(f"\n{index}." for index in range(1, 31))

_ENVIRONMENTS = (
    "align|aligned|alignat|alignedat|array|bmatrix|cases|dcases|displaymath|eqnarray|equation|flalign|gather|gathered"
    "|matrix|multline|pmatrix|split|tabular|vmatrix|Bmatrix|Vmatrix|asy|tikzpicture|verbatim|lstlisting"
)
# A backslash before the opening delimiter makes it a line break (`\\[2pt]`) or a literal dollar.
_OPENING = re.compile(
    r"(?P<fence>^[ \t>]*(?:(?:[*+-]|\d+[.)])[ \t]+)?(?P<ticks>`{3,}(?!`)|~{3,}(?!~))[^`\n]*$)"
    r"|(?<!\\)(?:\\\\)*(?:(?P<bracket>\\\[)|(?P<parenthesis>\\\()|(?P<dollars>\$\$)"
    rf"|(?P<environment>\\begin\s*\{{(?:{_ENVIRONMENTS})\*?\}}))"
    r"|(?P<asy>\[asy\])"
    r"|(?:^|(?<=\s))(?P<dollar>\$)(?=[ \t]*$)",  # `$` in the middle of a line may be an amount of money
    re.MULTILINE,
)
_ENVIRONMENT_EDGE = re.compile(rf"\\(begin|end)\s*\{{(?:{_ENVIRONMENTS})\*?\}}")
# LaTeX ends a formula at a blank line, so a formula that is never closed ends with its paragraph.
_CLOSING = {
    "bracket": re.compile(rf"\\\]|{_PARAGRAPH_END}"),
    "parenthesis": re.compile(rf"\\\)|{_PARAGRAPH_END}"),
    "dollar": re.compile(rf"\$|{_PARAGRAPH_END}"),
    "dollars": re.compile(rf"\$\$|{_PARAGRAPH_END}"),
    "asy": re.compile(r"\[/asy\]"),
}
_HEADING = re.compile(r"#{1,6}[ \t].*|(?:(?:[-*+>]|\d+[.)])[ \t]+)?\*\*[^*=]+[^*=.]\*\*")


def split_steps(text: str, splitter: str, steps_of: str = "both") -> list[str]:
    r"""
    Splits a solution into steps. Steps keep their delimiters, so `"".join(steps)` is exactly the text.

    If a solution is cut off after any of its steps, it splits into the same steps.

    Args:
        text (`str`):
            A solution.
        splitter (`str`):
            Where steps end:

            - `"whole_lines"`: at the end of a line, for text that language models write. No step begins inside a code
              fence or a formula (`\[...\]`, `$$...$$`, `\(...\)`, `\begin{align}`, `[asy]`). A displayed formula or a
              fence belongs to the line before it. A line that ends with a colon, and a heading, belong to the line
              after them. Lines with fewer than 12 characters belong to the step before them.
            - `"newline"`: at the end of every line.
            - `"raw_lines"`: at the end of every line, as with `"newline"`. In addition, [`clean_step`] keeps the white
              space at both ends of the line.
            - `"blank_line"`: at the end of every paragraph.
            - `"step"`: before a line that begins with `Step 1:`, `step 1 -`, `STEP 1)`, ..., also in bold, in a
              heading, a list or a quotation. Before the first such line, also before a line that begins with `1.`.
              Never inside a code fence.
            - `"turns"`: nowhere. The steps of a conversation are its turns, see
              [`~erprm_trl.rollouts.conversation_steps`].
            - any other string: after each occurrence of this string.
        steps_of (`str`, *optional*, defaults to `"both"`):
            Which part of a text with `<think>...</think>` is split. `"both"` splits the thinking and the answer, and
            no step contains parts of both. With `"thinking"`, the whole answer is the last step. With `"answer"`, the
            thinking is a part of the first step, and [`clean_step`] removes it. Thinking that is not closed then has
            no steps.

    Returns:
        `list[str]`: the steps. A part that consists of white space and delimiters only is joined to its neighbour, so
        no step is empty. A text without any content has no steps.

    Raises:
        `ValueError`: if the splitter is empty, or for an unknown `steps_of`.
    """
    if not splitter:
        raise ValueError(
            f"Step splitter: got '', expected one of {', '.join(NAMED_SPLITTERS)}, or a separator string. Pass e.g. "
            "'whole_lines'."
        )
    if steps_of not in STEPS_OF:
        raise ValueError(f"steps_of: got {steps_of!r}, expected one of {', '.join(STEPS_OF)}. Pass one of these.")
    start = answer_start(text)
    thinking, answer = (text, "") if start is None else (text[:start], text[start:])
    if steps_of == "answer":
        steps = _with_content(_pieces(answer, splitter), splitter)
        return [thinking + steps[0], *steps[1:]] if steps else []
    answer_pieces = _pieces(answer, splitter) if steps_of == "both" or not thinking else [answer]
    return _with_content([*_pieces(thinking, splitter), *answer_pieces], splitter)


def _with_content(pieces: list[str], splitter: str) -> list[str]:
    """Joins pieces without content to the step before them, or to the first step."""
    # Lists of pieces are used because appending to a string copies it, which takes quadratic time with many short
    # lines.
    steps: list[list[str]] = []
    leading: list[str] = []
    for piece in pieces:
        if clean_step(piece, splitter):
            steps.append([*leading, piece])
            leading = []
        elif steps:
            steps[-1].append(piece)
        else:
            leading.append(piece)
    return ["".join(step) for step in steps]


def _pieces(text: str, splitter: str) -> list[str]:
    """Cuts the text at the boundaries of the splitter. Pieces may be empty."""
    if splitter == TURNS:
        return [text]
    if splitter == "whole_lines":
        return _whole_lines(text)
    if splitter == "step":
        cuts = _step_headings(text)
    else:
        named = {"newline": _LINE_END, "raw_lines": _LINE_FEED, "blank_line": _BLANK_LINE}
        boundary = named.get(splitter) or re.compile(re.escape(splitter))
        cuts = [match.end() for match in boundary.finditer(text)]
    return _cut(text, cuts)


def _cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *cuts, len(text)]
    return [text[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]


class _Span(NamedTuple):
    """A formula or a code fence. It may be unclosed."""

    start: int
    end: int
    kind: str


def _formulas_and_fences(text: str) -> list[_Span]:
    """All formulas and fences in order. Of nested spans, only the outermost is returned."""
    spans: list[_Span] = []
    position = 0
    while opening := _OPENING.search(text, position):
        kind = "fence" if opening["fence"] is not None else opening.lastgroup
        if kind == "fence":
            closing = re.compile(rf"^[ \t>]*{re.escape(opening['ticks'])}+[ \t\r]*$", re.MULTILINE)
            end = closing.search(text, opening.end())
        elif kind == "environment":
            end = _environment_end(text, opening.end())
        else:
            end = _CLOSING[kind].search(text, opening.end())
        position = len(text) if end is None else end.end()
        start = opening.end() - len(r"\[") if kind in ("bracket", "parenthesis", "dollars") else opening.start()
        spans.append(_Span(start, position, kind))
    return spans


def _environment_end(text: str, position: int) -> re.Match | None:
    # Only the depth is counted, because models may close `align*` with `align`.
    depth = 1
    for match in _ENVIRONMENT_EDGE.finditer(text, position):
        depth += 1 if match[1] == "begin" else -1
        if not depth:
            return match
    return None


def _is_inside(position: int, spans: list[_Span]) -> bool:
    """Whether a position is inside one of the spans, which are in order and do not overlap."""
    index = bisect_left(spans, position, key=attrgetter("start")) - 1
    return index >= 0 and position < spans[index].end


def _step_headings(text: str) -> list[int]:
    fences = [span for span in _formulas_and_fences(text) if span.kind in ("fence", "asy")]
    cuts, has_named = [], False
    for match in _STEP_HEADING.finditer(text):
        if _is_inside(match.start(), fences) or (has_named and not match["named"]):
            continue
        has_named = has_named or match["named"] is not None
        cuts.append(match.start())
    return cuts


def _whole_lines(text: str) -> list[str]:
    pieces: list[list[str]] = []
    is_first_short, first_length = True, 0
    for line in _cut(text, _line_cuts(text)):
        # The first piece grows until it is long enough. Later lines that are too short are added to the piece before.
        if pieces and (is_first_short or _is_short(line)):
            pieces[-1].append(line)
        else:
            pieces.append([line])
        if is_first_short:
            # Without the limit, a text of delimiters would take quadratic time, because it never becomes long enough.
            first_length += len(line)
            is_first_short = first_length < _LONGEST_START and _is_short("".join(pieces[0]))
    return ["".join(piece) for piece in pieces]


def _line_cuts(text: str) -> list[int]:
    """Line ends at which a step may end: outside formulas and fences, not before a displayed formula, and not after a
    heading."""
    spans = _formulas_and_fences(text)
    displays = [span.start for span in spans if span.kind != "parenthesis"]
    cuts, line_start = [], 0
    for match in _LINE_END.finditer(text):
        line = text[line_start : match.start()].strip()
        line_start = cut = match.end()
        next_display = bisect_left(displays, cut)
        before_display = next_display < len(displays) and _INDENT.match(text, cut).end() >= displays[next_display]
        if not (_is_inside(cut, spans) or before_display or _belongs_to_next(line)):
            cuts.append(cut)
    return cuts


def _belongs_to_next(line: str) -> bool:
    return line.rstrip("*_ \t").endswith((":", "\uff1a")) or _HEADING.fullmatch(line) is not None


def _is_short(piece: str) -> bool:
    characters = "".join(clean_step(piece, "whole_lines").split())
    # A Chinese, Japanese or Korean character carries about as much text as three letters.
    return len(characters) + 2 * sum(character >= _FIRST_IDEOGRAPH for character in characters) < MIN_CHARACTERS


def splitting_advice(texts: Sequence[str], steps_of: str = "both") -> str:
    """
    Advice for texts in each of which a splitter finds a single step.

    Args:
        texts (`Sequence[str]`):
            The texts, at least one.
        steps_of (`str`, *optional*, defaults to `"both"`):
            The part of a text that has steps, see [`split_steps`].

    Returns:
        `str`: how one of the texts begins, and a splitter that finds more steps, if there is one.
    """
    remedy = "Set splitter to the string that separates their steps, or ask for steps in the prompt"
    for splitter in NAMED_SPLITTERS:
        num_steps = [len(split_steps(text, splitter, steps_of)) for text in texts]
        if max(num_steps) > 1:
            remedy = f"splitter={splitter!r} would give {sum(num_steps) / len(texts):.1f} steps per text"
            break
    return f"One begins with {max(texts, key=len)[:200]!r}. {remedy}."


def join_steps(steps: Iterable[str], splitter: str, separator: str | None = None, *, closed: bool = True) -> str:
    r"""
    Writes cleaned steps as the beginning of a solution, which a policy can continue with its next step.

    Cleaning removes white space at the ends of steps, so the result may differ from the original text there.

    Args:
        steps (`Iterable[str]`):
            Steps without delimiters, as from [`clean_steps`].
        splitter (`str`):
            See [`split_steps`].
        separator (`str`, *optional*):
            Text between two steps. Defaults to a line break (two for `"blank_line"`). For a splitter that is a
            separator string, it defaults to this string, with a space on each side if it has no white space there.
        closed (`bool`, *optional*, defaults to `True`):
            Whether the text ends with the separator, without spaces at its end, because most tokenizers join a space
            to the next word. Pass `False` for a whole solution.

    Returns:
        `str`: the text. It is empty if there are no steps.

    Example:

    ```python
    >>> join_steps(["7 + 1 = 8", "8 * 2 = 16"], "ки")
    '7 + 1 = 8 ки 8 * 2 = 16 ки'
    ```
    """
    steps = list(steps)
    if not steps:
        return ""
    if separator is None and splitter in NAMED_SPLITTERS:
        separator = "\n\n" if splitter == "blank_line" else "\n"
    elif separator is None:
        separator = splitter if splitter != splitter.strip() else f" {splitter} "
    return separator.join(steps) + (separator.rstrip(" ") if closed else "")


def step_stops(splitter: str) -> tuple[str, ...]:
    """
    Strings at which sampling stops so that the policy writes one step.

    If a step ends in another way (a blank line with white space in it, an unusual heading), sampling does not stop
    there, and returns this step together with the next. With `"step"`, a step ends where the heading of the next step
    begins, and with `"whole_lines"`, it ends where the next line begins. See [`closed_steps`].

    Args:
        splitter (`str`):
            See [`split_steps`].

    Returns:
        `tuple[str, ...]`: the stop strings.
    """
    if splitter == "step":
        return (*_STEP_WORDS, *_STEP_NUMBERS)
    if splitter in ("newline", "raw_lines", "whole_lines"):
        return ("\n",)
    if splitter == TURNS:
        return ()
    return ("\n\n",) if splitter == "blank_line" else (splitter,)


def closed_steps(text: str, splitter: str, *, finished: bool = False, steps_of: str = "both") -> list[str]:
    """
    Returns the cleaned steps of an unfinished solution that further text cannot change.

    Args:
        text (`str`):
            The solution so far.
        splitter (`str`):
            See [`split_steps`]. With `"step"`, an incomplete heading at the end is left out. With `"whole_lines"`, the
            last step is left out, because the next line may belong to it.
        finished (`bool`, *optional*, defaults to `False`):
            Whether the solution is complete. If so, all its steps are returned.
        steps_of (`str`, *optional*, defaults to `"both"`):
            See [`split_steps`].

    Returns:
        `list[str]`: the cleaned steps.
    """
    if splitter == "step" and not finished:
        text = _OPEN_HEADING.sub("", text)
    steps = split_steps(text, splitter, steps_of)
    return clean_steps(steps[:-1] if splitter == "whole_lines" and not finished else steps, splitter)


def whole_characters(text: str) -> str:
    """Replaces each lone half of a surrogate pair by U+FFFD. JSON may contain such halves, but tokenizers reject
    them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_step(step: str, splitter: str) -> str:
    """
    Returns the content of a step, as a reward model reads it.

    Thinking before an answer is removed, and delimiters and white space at both ends are removed. With `"raw_lines"`,
    only the last line feed is removed, and with `"turns"`, only white space at both ends. Lone halves of surrogate
    pairs are replaced, see [`whole_characters`].

    Args:
        step (`str`):
            A step from [`split_steps`].
        splitter (`str`):
            See [`split_steps`].

    Returns:
        `str`: the content of the step.
    """
    step = whole_characters(step)
    if splitter == TURNS:
        return step.strip()
    thinking, close, answer = step.rpartition(THINK_CLOSE)
    if close and (content := _stripped(answer, splitter)):
        return content
    return _stripped(thinking + close + answer, splitter)


def _stripped(text: str, splitter: str) -> str:
    ends = [tag for tag in _TAGS if tag in text]
    if splitter == "raw_lines" and text.strip() and not ends:
        return text.removesuffix("\n")
    text = text.strip()
    if splitter not in NAMED_SPLITTERS:
        ends.append(splitter.strip() or splitter)
    while text.startswith(tuple(ends)) or text.endswith(tuple(ends)):
        for end in ends:
            text = text.removeprefix(end).removesuffix(end).strip()
    return text


def clean_steps(steps: Iterable[str], splitter: str) -> list[str]:
    """Applies [`clean_step`] to each step of a solution."""
    return [clean_step(step, splitter) for step in steps]
