"""Splits a solution's text into steps and joins them again. Text only; token positions belong to
`reward_model.encoding`."""

import re
from collections.abc import Iterable


NAMED_SPLITTERS = ("newline", "blank_line", "step", "line")

_STEP_HEADING = re.compile(r"^[ \t#*]*Step \d+[*\s]*[:.]", re.MULTILINE)
_OPEN_HEADING = re.compile(r"(?:^|(?<=\n))[ \t#*]*Step[ \t]*\d*$")
_BOUNDARY = {
    "newline": re.compile(r"\n+"),
    "line": re.compile(r"\n"),
    "blank_line": re.compile(r"\n[ \t]*(?:\n[ \t]*)+"),
}


def split_steps(text: str, splitter: str) -> list[str]:
    """
    Splits a solution into steps that keep their delimiters, so that `"".join(steps)` is the text, byte for byte.

    Args:
        text (`str`):
            A solution.
        splitter (`str`):
            `"newline"` (each line a step), `"line"` (the same, but steps keep the white space at the ends of their
            line), `"blank_line"` (each paragraph), `"step"` (a line that begins with `Step 1:`, bold or a heading
            allowed, opens a step), or any other string: the separator that closes a step, taken literally.

    Returns:
        `list[str]`: the steps. A piece with nothing but white space and delimiters is joined to its neighbour, so no
        step is empty; a text without any content has no steps.

    Raises:
        `ValueError`: if the separator is empty.
    """
    if not splitter:
        raise ValueError(f"Step splitter: got '', expected one of {', '.join(NAMED_SPLITTERS)} or a separator string.")
    if splitter == "step":
        cuts = [match.start() for match in _STEP_HEADING.finditer(text)]
    elif splitter in _BOUNDARY:
        cuts = [match.end() for match in _BOUNDARY[splitter].finditer(text)]
    else:
        cuts = [match.end() for match in re.finditer(re.escape(splitter), text)]
    edges = [0, *cuts, len(text)]
    steps: list[str] = []
    leading = ""
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        piece = text[start:end]
        if clean_step(piece, splitter):
            steps.append(leading + piece)
            leading = ""
        elif steps:
            steps[-1] += piece
        else:
            leading += piece
    return steps


def step_stops(splitter: str) -> tuple[str, ...]:
    """
    The strings at which to stop a policy so that it writes one step.

    A step that ends in another way (a blank line with white space in it, an unusual heading) is not stopped at, and
    comes together with the next. `"step"` closes a step by the heading of the next, which then is begun already:
    see [`closed_steps`].
    """
    if splitter == "step":
        return tuple(f"\n{mark}Step" for mark in ("", "**", "## ", "### ", "#### "))
    return {"newline": ("\n",), "line": ("\n",), "blank_line": ("\n\n",)}.get(splitter, (splitter,))


def closed_steps(text: str, splitter: str) -> list[str]:
    """The cleaned steps of a solution that is being written, without the begun heading of a step at its end."""
    if splitter == "step":
        text = _OPEN_HEADING.sub("", text)
    return clean_steps(split_steps(text, splitter), splitter)


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which JSON can hold and no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_step(step: str, splitter: str) -> str:
    """The step's content in whole characters: without its delimiters and without white space at either end. This is
    what a reward model reads. `"line"` leaves out the last line feed alone."""
    if splitter == "line" and step.strip():
        return whole_characters(step).removesuffix("\n")
    step = whole_characters(step).strip()
    if splitter in NAMED_SPLITTERS:
        return step
    separator = splitter.strip() or splitter
    while separator and (step.startswith(separator) or step.endswith(separator)):
        step = step.removeprefix(separator).removesuffix(separator).strip()
    return step


def clean_steps(steps: Iterable[str], splitter: str) -> list[str]:
    """[`clean_step`] of each of a solution's steps."""
    return [clean_step(step, splitter) for step in steps]
