"""What is a formula, what is code and what is text, above all where dollar signs are money."""

import json
import os
from pathlib import Path

import pytest
from processor_time import limited_processor_time

from erprm_trl.report import rich_text
from erprm_trl.report.rich_text import RichText


CASES = Path(os.environ.get("ERPRM_CASES", "nowhere"), "real_completions.jsonl")
PUBLIC_DATA = Path(os.environ.get("ERPRM_TEST_DATA", "nowhere"))
OWN_DATA = Path(__file__).parents[1] / "data"


def formulas(text):
    rich = RichText()
    rich.text(text)
    return [formula["source"] for formula in rich.formulas]


def parts(*steps):
    """The parts of steps, with the source of each formula in the place of its number."""
    rich = RichText()
    return [
        step
        if isinstance(step, str)
        else [
            ["math", rich.formulas[part[1]]["source"]] if not isinstance(part, str) and part[0] == "math" else part
            for part in step
        ]
        for step in rich.steps(steps)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $7.",
        "It costs $5, $7 or $9.",
        "between $5-$7",
        "for $5,$7 or $9",
        "He pays $5 for a book, she pays 7$.",
        "He pays $12*5=$60.",
        "She spends 2*$5=$<<2*5=10>>10.",
        "That is $40/2=$20 for each.",
        "$33 \\times 2 = $66.",
        "I pay 5$ for you and 7$ for me.",
        "It is 5$.",
        "US$5, A$7",
        "Costs: \\$5 and \\$7",
        "$1,000.50 + $2 = $1,002.50",
        "$5\n\nand so on $",
        "from $5 (or $x) on",
        "$ and $",
        "$$",
        "$$$$",
        "$",
        "a single \\( b",
        "\\[ x",
        "\\boxed{3",
        "\\boxed 3",
        "\\begin{align} x",
        "\\begin{document}x\\end{document}",
        "1 < 2 and a_b^c",
    ],
)
def test_money_and_text_are_no_formulas(text):
    assert parts(text) == [text]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("so $x$, $2x + 3 = 7$ and $109$.", ["$x$", "$2x + 3 = 7$", "$109$"]),
        ("$P_{\\text{total}} = 5000$", ["$P_{\\text{total}} = 5000$"]),
        ("$\\begin{matrix} a \\end{matrix}$", ["$\\begin{matrix} a \\end{matrix}$"]),
        ("the sides of $ABC$ and $\\angle BAC$", ["$ABC$", "$\\angle BAC$"]),
        ("costs $33 and $B$ costs $66", ["$B$"]),
        ("The total is $33 + 66 = $109$.", ["$109$"]),
        ("$5 each, so \\(5 \\times 2\\) or \\[10\\]", ["\\(5 \\times 2\\)", "\\[10\\]"]),
        ("$$x\n=1$$", ["$$x\n=1$$"]),
        ("is \\boxed{5{,}000}.", ["\\boxed{5{,}000}"]),
        ("is $\\boxed{\\frac{1}{2}}$", ["$\\boxed{\\frac{1}{2}}$"]),
        ("\\begin{align*}x&=1\\end{align*}", ["\\begin{align*}x&=1\\end{align*}"]),
    ],
)
def test_formulas_are_formulas(text, sources):
    assert formulas(text) == sources


def test_code_is_code_and_may_span_steps():
    assert parts("use `sympy` and `$x$`") == [["use ", ["code", "sympy"], " and ", ["code", "$x$"]]]
    steps = ["Run this:\n```python\nx = '$5$'\n", "print(x)\n", "```\nIt prints \\(5\\).\n", "`"]
    assert parts(*steps) == [
        ["Run this:\n", ["code", "x = '$5$'\n"]],
        [["code", "print(x)\n"]],
        ["It prints ", ["math", "\\(5\\)"], ".\n"],
        "`",
    ]


def test_an_answer_may_be_a_formula_without_delimiters():
    rich = RichText()
    assert rich.answer("\\frac{1}{2}") == [["math", 0]] and rich.answer("$x$") == [["math", 1]]
    assert rich.answer("18") == "18" and rich.answer("C:\\path") == "C:\\path" and rich.answer(None) is None


def test_a_formula_is_kept_once_and_those_of_a_page_are_bounded(monkeypatch):
    rich = RichText()
    assert rich.steps(["$x$ and $x$", "\\(y\\)"]) == [[["math", 0], " and ", ["math", 0]], [["math", 1]]]
    monkeypatch.setattr(rich_text, "MAX_PAGE_CHARACTERS", 10)
    assert RichText().steps(["$12345$", "$67890$", "$x$", "$12345$"]) == [
        [["math", 0]],
        [["math", 1]],
        "$x$",
        [["math", 0]],
    ]


@pytest.mark.parametrize(
    "piece",
    ["\\(", "\\[", "$", "$a ", " $a", "\\boxed{", "\\begin{align}", "`a\n", "` ", "```\n", "{", "$x", "\\boxed{}"],
)
def test_hostile_text_takes_little_time(piece):
    text = piece * (100_000 // len(piece))
    with limited_processor_time():
        RichText().text(text)


def test_money_of_our_questions_is_text():
    for line in (OWN_DATA / "gsm8k_form.jsonl").read_text(encoding="utf-8").splitlines():
        assert [formulas(text) for text in json.loads(line).values()] == [[], []]


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="ERPRM_TEST_DATA names no folder with the public sets")
def test_money_of_gsm8k_is_text():
    """GSM8K has no LaTeX, so a formula there would be money."""
    lines = (PUBLIC_DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    wrong = [source for row in map(json.loads, lines) for text in row.values() for source in formulas(text)]
    assert len(lines) == 1319 and wrong == []


@pytest.mark.skipif(not CASES.is_file(), reason="set ERPRM_CASES to a folder with real_completions.jsonl")
def test_no_formula_of_real_completions_holds_a_sentence():
    lines = CASES.read_text(encoding="utf-8").splitlines()
    sources = [source for row in map(json.loads, lines) for source in formulas(row["text"]) if source[0] == "$"]
    assert sources and not [source for source in sources if " the " in source or " and " in source]
