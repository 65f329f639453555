"""Renders solutions as HTML or Markdown, with steps coloured by score. All texts are escaped."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple


COLUMNS = ["question", "steps", "lowest score"]
# Colours from wrong to right that colour-blind readers can also tell apart.
LOW, MIDDLE, HIGH = (230, 140, 80), (250, 246, 232), (110, 175, 225)
MARKS = ("🟧", "⬜", "🟦")  # for trackers that do not show HTML colours


class ColouredSteps(NamedTuple):
    """
    The steps of a solution with their scores.

    Args:
        steps (`Sequence[str]`):
            Texts of the steps.
        scores (`Sequence[float]`):
            Scores in [0, 1], one per step. Empty if the solution could not be scored.
        labels (`Sequence[float]`, *optional*):
            Labels in [0, 1], one per step.
    """

    steps: Sequence[str]
    scores: Sequence[float]
    labels: Sequence[float] = ()

    def to_html(self) -> str:
        """The steps as an ordered list, with the colour of the score as background."""
        items = []
        for index, step in enumerate(self.steps):
            colour = f"background:{_colour(self.scores[index])};color:#111;" if self._is_scored(index) else ""
            items.append(
                f'<li style="{colour}padding:2px 6px;margin:1px 0">'
                f"<b>{self._caption(index)}</b> {html.escape(step)}</li>"
            )
        return f'<ol style="font:13px sans-serif;margin:0">{"".join(items)}</ol>'

    def to_markdown(self) -> str:
        """The steps with one line per step, which starts with a coloured mark for the score."""
        lines = []
        for index, step in enumerate(self.steps):
            mark = MARKS[min(int(self.scores[index] * 3), 2)] if self._is_scored(index) else ""
            lines.append(f"{mark} {self._caption(index)} {escape_markdown(step)}".strip())
        return "<br>".join(lines)

    def _is_scored(self, index: int) -> bool:
        # The scores of a diverged model may be NaN, which has no colour. Its table should still be shown.
        return bool(self.scores) and not math.isnan(self.scores[index])

    def _caption(self, index: int) -> str:
        score = f"{self.scores[index]:.2f}" if self.scores else "not scored"
        return f"{score} (label {self.labels[index]:.2f})" if self.labels else score


def solutions_table(questions: Sequence[str], solutions: Sequence[ColouredSteps]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table `solutions`."""
    rows = [
        [question, solution, round(min(solution.scores), 4) if solution.scores else None]
        for question, solution in zip(questions, solutions, strict=True)
    ]
    return COLUMNS, rows


def table_as_html(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as HTML."""
    head = "".join(f'<th style="text-align:left">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f"<tr style='vertical-align:top'>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<table style="font:13px sans-serif"><tr>{head}</tr>{body}</table>'


def table_as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown."""
    lines = [[escape_markdown(column) for column in columns], ["---"] * len(columns)]
    for row in rows:
        lines.append(
            [cell.to_markdown() if isinstance(cell, ColouredSteps) else escape_markdown(_text(cell)) for cell in row]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    """Escapes a text so that Markdown and HTML readers find no markup in it. The result has a single line."""
    escaped = (char if char.isalnum() or ord(char) > 127 or char in " .,:+-=" else f"&#{ord(char)};" for char in text)
    return "".join(escaped).replace("&#10;", "<br>")


def _cell(cell: Any) -> str:
    return cell.to_html() if isinstance(cell, ColouredSteps) else html.escape(_text(cell)).replace("\n", "<br>")


def _text(cell: Any) -> str:
    return "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _colour(score: float) -> str:
    score = min(max(score, 0.0), 1.0)
    low, high, share = (LOW, MIDDLE, score * 2) if score < 0.5 else (MIDDLE, HIGH, score * 2 - 1)
    return "rgb({},{},{})".format(*(round(a + (b - a) * share) for a, b in zip(low, high, strict=True)))
