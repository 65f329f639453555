"""Searches all prose (comments, docstrings, messages, Markdown, YAML comments) for phrases that are hard to read.

A failure names the file, the line and the phrase. Rewrite the sentence with a subject, a verb and words of the field.
If a match is not an instance of its rule, make the pattern more precise, or add the phrase to `ALLOWED` with a reason.
"""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = ("erprm_trl", "recipes", "accelerate_configs", "docs")
KINDS = (".py", ".md", ".yaml", ".j2", ".ipynb")

UNIT = "(?:question|solution|step|token|round|update|process|row|sample|prefix|sequence|batch|second)"
PLURAL = "(?i:solutions|questions|tokens|steps|continuations|rows|numbers|seconds|bytes|picks|rollouts|prefixes)"
RATED = "(?:forward pass|pass|score|row|number|label|column|line|thread|shard|seed|request|value)"
SINGLE_WORD = r"(?!(?:of|in|for|from|by|to|with|on|at|is|as|and|or|has|that|than|into|per|needs|gives|scores)\b)[\w-]+"

# Each rule: a pattern, and how to write it instead.
RULES = {
    "per": (
        rf"\b[Oo]ne (?:{SINGLE_WORD} ){{0,1}}an? {UNIT}\b(?!-)"
        rf"|\b{PLURAL} an? {UNIT}\b(?!-)|\bsamples a question\b"
        rf"|\b(?:[Oo]nce|[Tt]wice|KL|[Dd]iscount|[Dd]iscount:|[Ll]ambda) an? {UNIT}\b"
        rf"|\b[Aa]n? {RATED} an? {UNIT}\b(?!-)",
        "write 'per step', not 'a step', for a rate",
    ),
    "anew": (r"\banew\b", "write 'again'"),
    "beside": (r"\b[Bb]eside\b", "write 'next to' or 'in addition to'"),
    "whatever": (r"\b(?:[Ww]hatever|[Ww]herever)\b", "name the thing: 'any', 'for every', 'everywhere'"),
    "by itself": (r"\bby itself\b", "write 'alone' or 'automatically'"),
    "what is": (
        r"(?<!says )(?<!shows )(?<!lists )(?<!\| )\b[Ww]hat is\b(?![^.?]*\?)",
        "begin with a noun: 'the value that …'",
    ),
    "relative clause": (r"(?:^|[.!:] )What (?!is\b)(?![^.?]*\?)", "begin a sentence with its subject"),
    "of it": (r"(?<!all )(?<!part )(?<!most )(?<!rest )(?<!none )(?<!half )(?<!multiple )\bof it\b", "name the thing"),
    "none": (r"\b(?:that|which) (?:is|are) none\b", "write 'NaN', 'non-finite' or 'not a …'"),
    "those of": (r"\b[Tt]hose of\b", "repeat the noun"),
    "is told": (r"\b(?:is|are|was|were|be) (?:told|said)\b", "say who receives what: 'the message names …'"),
    "lies in": (r"\b(?:lies|lie|lay|lying) in\b", "write 'is in'"),
    "astray": (r"\b(?:go|goes|going|went) astray\b", "write 'is lost' or 'fails'"),
    "possessive": (r"`\]?'s(?= *(?:[.,;:)]|$))", "write the noun: 'the … of `x`'"),
    "which is what": (r"\bwhich is what\b", "say it in a sentence, or leave it out"),
    "fragment": (r"(?:^|\): )Of (?:a|an|the|each|every|all)\b", "write a full phrase: 'Maximum …'"),
}

# Phrases that match a rule and are right, by file.
ALLOWED: dict[str, dict[str, str]] = {}


def paragraphs(text, line):
    """Yields the paragraphs of a text as single lines, with the line number of their beginning."""
    lines, start = [], line
    for index, content in enumerate([*text.split("\n"), ""], start=line):
        # A description that is indented further, a list item and a table row begin a new paragraph.
        is_break = not content.strip() or re.match(r"\s*(?:[-*|] |\|)", content)
        if is_break and lines:
            yield start, " ".join(lines)
            lines = []
        if content.strip():
            start = start if lines else index
            lines.append(content.strip())


def python_prose(source):
    """Comments, docstrings and other strings."""
    comment, previous = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != previous + 1 and comment:
                yield from paragraphs("\n".join(comment), previous - len(comment) + 1)
                comment = []
            comment.append(token.string.lstrip("# "))
            previous = token.start[0]
    yield from paragraphs("\n".join(comment), previous - len(comment) + 1)
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from paragraphs(text, node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield from paragraphs(node.value, node.lineno)


def markdown_prose(text):
    """Paragraphs, list items and table cells, without headings and code."""
    text = re.sub(r"^( *)(```|~~~).*?^\1\2", lambda match: "\n" * match[0].count("\n"), text, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "`x`", text)
    yield from paragraphs("\n".join("" if line.startswith("#") else line for line in text.split("\n")), 1)


def prose(path):
    """The prose of a file, as (line number, paragraph)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return python_prose(text)
    if path.suffix == ".md":
        return markdown_prose(text)
    if path.suffix == ".yaml":
        return ((line, comment[1].strip()) for line, comment in enumerate_comments(text))
    if path.suffix == ".ipynb":
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        return (pair for cell in cells for pair in markdown_prose(cell))
    return paragraphs(re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|<[^>\n]*>", " ", text), 1)  # a Jinja template


def enumerate_comments(text):
    """Line number and match of each YAML comment."""
    for line, content in enumerate(text.split("\n"), start=1):
        if match := re.search(r"(?:^|\s)#(.*)", content):
            yield line, match


def problems(path, name):
    """Lines of a file that break a rule, without those in `ALLOWED`."""
    for line, paragraph in prose(path):
        text = re.sub(r"\s+", " ", paragraph)
        for rule, (pattern, advice) in RULES.items():
            for match in re.finditer(pattern, text):
                shown = text[max(0, match.start() - 30) : match.end() + 30]
                if not any(phrase in shown for phrase in ALLOWED.get(name, {})):
                    yield f"{name}:{line}: {rule}: …{shown}… {advice}"


FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in KINDS and "__pycache__" not in path.parts
)


@pytest.mark.parametrize("path", [ROOT / "README.md", *FILES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_plain(path):
    lines = list(problems(path, path.relative_to(ROOT).as_posix()))
    assert not lines, "\n".join(["sentences to rewrite:", *lines])


def test_every_exception_is_needed():
    for name, phrases in ALLOWED.items():
        text = " ".join(paragraph for _, paragraph in prose(ROOT / name))
        for phrase, reason in phrases.items():
            assert reason and phrase in re.sub(r"\s+", " ", text), f"{name}: {phrase!r} is no longer in the file"


HARD = {
    "per": [
        "one score a step", "one number a solution", "Questions a round, the next block", "Tokens a second",
        "Discount a token", "mean KL a token", "a forward pass a step", "a row a round", "Solutions a question.",
        "samples a question (n)", "Keep a text only once a question.",
    ],
    "anew": ["which begins anew at its end"],
    "beside": ["the adapters beside it"],
    "whatever": ["in the order of the questions, whatever sampled them", "Wherever it stands"],
    "by itself": ["a text that ended by itself"],
    "what is": ["What is not finite ends every training.", "Drops what is missing"],
    "relative clause": ["What a row of data lacks is never passed over.", "It runs. What it reads is data."],
    "of it": ["the end of it", "Two of it are kept"],
    "none": ["Numbers that are none."],
    "those of": ["the tokens are those of the text"],
    "is told": ["is told where to stop", "what is said of bad rows"],
    "lies in": ["a rate that lies in [0, 1]"],
    "astray": ["where a solution goes astray"],
    "possessive": ["Grading is `worker.py`'s.", "the copies are [`buffer_bytes`]'s"],
    "which is what": ["which is what it is for"],
    "fragment": ["Of a request.", "Of each prefix, shape (P,)."],
}  # fmt: skip
PLAIN = [
    "the steps of a solution", "a backend that scores a step by its length", "samples a token from the policy",
    "one of a question's solutions", "the value of a prefix", "What is 12 + 3?", "besides the answer", "all of it",
    "per step", "one score per step", "the labels of a step", "gives a solution no score", "credits a step with it",
    "a step, a token or a row", "the answer of `x`'s author", "if there are none", "a two-step solution",
    "Number of rows. Of a stream, no more are read.", "an answer needs a solution", "a separator inside a step",
    "lines in a file", "the log says what is finished", "the number of tokens in a step",
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_its_phrases(rule):
    pattern = RULES[rule][0]
    assert [text for text in HARD[rule] if not re.search(pattern, text)] == []
    assert [text for text in PLAIN if re.search(pattern, text)] == []


def test_all_kinds_of_prose_are_read(tmp_path):
    hard = "one score\n{}a step"
    contents = {
        "comment.py": "x = 1  # one score\n# a step\n",
        "docstring.py": f'def f():\n    """\n    {hard.format("    ")}\n    """\n',
        "message.py": 'raise ValueError(f"{x}: expected one score " "a step.")\n',
        "page.md": f"# One score a step\n\n{hard.format('')}\n\n```\none score a step\n```\n`one score a step`\n",
        "settings.yaml": "eta: 2.0  # one score a step\n",
        "page.html.j2": "<p>one score {# here #}\n<b>a step</b></p>\n",
        "notebook.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": ["one score a step"]}]}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        reported = list(problems(tmp_path / name, name))
        assert len(reported) == 1 and "per: …" in reported[0], (name, reported)
