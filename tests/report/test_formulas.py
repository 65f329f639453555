"""LaTeX becomes MathML that holds only listed elements, and hostile formulas become nothing."""

import json
import os
from pathlib import Path

import pytest
from processor_time import limited_processor_time

from erprm_trl.report.formulas import (
    ATTRIBUTES,
    ELEMENTS,
    ENVIRONMENTS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_ELEMENTS,
    mathml_tree,
)
from erprm_trl.report.rich_text import RichText


PUBLIC_DATA = Path(os.environ.get("ERPRM_TEST_DATA", "nowhere"))


def walk(tree, depth=0):
    """Each element of a tree with its depth."""
    yield tree, depth
    for child in tree[2:]:
        if isinstance(child, list):
            yield from walk(child, depth + 1)


def text(tree):
    return "".join(child if isinstance(child, str) else text(child) for child in tree[2:])


def names(tree):
    return [element[0] for element, _ in walk(tree)]


def test_formulas_become_mathml():
    half = ["mfrac", {}, ["mn", {}, "1"], ["mn", {}, "2"]]
    assert mathml_tree(r"\frac{1}{2}") == ["math", {}, half]
    assert mathml_tree(r"\frac12", display=True) == ["math", {"display": "block"}, half]
    assert mathml_tree("x^2") == ["math", {}, ["msup", {}, ["mi", {}, "x"], ["mn", {}, "2"]]]
    assert mathml_tree(r"\boxed{3}") == ["math", {}, ["mrow", {"class": "boxed"}, ["mn", {}, "3"]]]
    assert text(mathml_tree(r"3 \text{ eggs} \times 2")) == "3\u00a0eggs×2"
    assert text(mathml_tree("a < b > c & d")) == "a<b>c&d"
    aligned = mathml_tree(r"\begin{aligned} x &= 1 \\[2pt] y &= 2 \end{aligned}")
    assert names(aligned).count("mtr") == 2 and text(aligned) == "x=1y=2"


def test_text_that_latex_would_change_is_kept():
    assert text(mathml_tree("25% of x")) == "25%ofx"  # an unescaped % begins a comment in LaTeX
    assert text(mathml_tree(r"25\% x")) == "25%x"
    assert mathml_tree("80,000+1,234.5")[2][2:] == [["mn", {}, "80,000"], ["mo", {}, "+"], ["mn", {}, "1,234.5"]]
    assert text(mathml_tree("f(1,2)")) == "f(1,2)" and names(mathml_tree("(1,20)")).count("mn") == 2


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\class{a}{x}",
        r"\style{color:red}{x}",
        r"\color{red} x",
        r"\unicode{x3c}",
        r"\verb|<b>|",
        r"\def\a{xx}\a",
        r"\newcommand{\a}{xx}\a",
        r"\newenvironment{a}{b}{c}x",
        r"\DeclareMathOperator{\a}{x}\a",
        r"\sideset{_1}{_2}{\sum}",  # doubles its argument: nested, the result would be exponentially long
        r"\rule{9999px}{9999px}",
        r"\hspace{9999px}",
        r"\includegraphics{http://host/x.png}",
        r"\begin{html}x\end{html}",
        r"\frac{1}",
        r"\left( x",
        r"x^2^3",
        "",
        " \n",
        "x" * (MAX_CHARACTERS + 1),
        "x+" * 50_000,
        "{" * 400 + "x" + "}" * 400,
        "x^{" * 200 + "y" + "}" * 200,
        r"\sqrt" * 190 + "x",
        r"\frac" * 190 + "12",
        r"\left(" * 150,
        "a\\over " * 100 + "b",
    ],
)
def test_what_is_not_listed_too_large_or_no_latex_is_not_converted(latex):
    with limited_processor_time():
        assert mathml_tree(latex) is None


@pytest.mark.parametrize(
    "latex",
    [
        r"x</math><script>alert(1)</script>",
        r"\text{</mtext><img src=x onerror=alert(1)>}",
        r"\text{&#x3c;script&#x3e;}",
        r"\operatorname{<script>}",
        r"\text{<annotation-xml encoding='text/html'><b>}",
        r"\begin{matrix} a & b \\ c & d \end{matrix} \left[ \frac{x}{y} \right] \bigl( \sqrt[3]{z} \bigr) \vec{v}",
        r"\sum_{i=1}^{n} \lim_{x \to 0} \overbrace{a}^{b} \mathbf{ab} \mathrm{cd} \binom{n}{k} \pmod{3} \phantom{x}",
        r"\text{" * 160,
        r"\not" * 190 + "=",
        "x" + "'" * 900,
        "\\begin{matrix}" + "&" * 900 + "\\end{matrix}",
        r"\displaystyle x " * 60,
        r"\operatorname{" + " " * 900,
        r"\operatorname{" + "a*" * 450,
    ],
)
def test_results_hold_only_listed_elements_and_stay_small(latex):
    with limited_processor_time():
        tree = mathml_tree(latex)
    if tree is None:
        return
    elements = list(walk(tree))
    assert len(elements) <= MAX_ELEMENTS + 1 and max(depth for _, depth in elements) <= MAX_DEPTH
    for (name, attributes, *children), _ in elements:
        assert name in ELEMENTS or name == "math"
        assert set(attributes) <= ATTRIBUTES | {"display", "class"}
        assert attributes.get("class", "boxed") == "boxed"
        assert all(isinstance(child, list) for child in children) or name in {"mi", "mn", "mo", "mtext"}
    assert len(json.dumps(tree)) < 200 * MAX_CHARACTERS


def test_the_listed_elements_and_attributes_do_nothing_but_show():
    assert not ELEMENTS & {"maction", "annotation", "annotation-xml", "semantics", "script", "a", "mglyph", "merror"}
    assert not any(name.startswith(("on", "style", "class", "id", "href", "src", "xlink")) for name in ATTRIBUTES)
    assert set(ENVIRONMENTS.values()) <= set(ENVIRONMENTS)


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="ERPRM_TEST_DATA names no folder with the public sets")
def test_formulas_of_math500_are_converted():
    rich = RichText()
    lines = (PUBLIC_DATA / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [rich.text(row["solution"]) for row in map(json.loads, lines[:200])]
    texts = [part for parts in solutions if isinstance(parts, list) for part in parts if isinstance(part, str)]
    signs = sum(text.count("$") - text.count("\\$") for text in texts)  # two for each formula that stays text
    assert len(rich.formulas) > 1000 and signs / 2 < 0.05 * len(rich.formulas)
