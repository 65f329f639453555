"""Tests colours, and the escaping of texts."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown import markdown

from erprm_trl.training.tracking.coloured_steps import ColouredSteps, escape_markdown, table_as_html, table_as_markdown


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "![](http://evil.example/pixel.png)",
    "| a | b |\n| --- | --- |",
    "</li></ol></td></tr></table><iframe src='http://evil.example'>",
    "`code` **bold** <http://evil.example> # head",
    "&lt;script&gt; &#60;b&#62;",
]
TAGS = {"table", "tr", "th", "td", "ol", "li", "b", "br"}


class Read(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text):
    solution = ColouredSteps([text, text], [0.1, 0.9], [0.0, 1.0])
    rows = [[text, solution, 0.1]]
    page = Read(table_as_html([text], rows))
    assert page.tags <= TAGS and page.attributes <= {"style"}
    assert text in page.text
    shown = Read(markdown(table_as_markdown(["question", "steps", "score"], rows), extensions=["tables"]))
    assert shown.tags <= TAGS | {"thead", "tbody"} and not shown.attributes
    assert text.replace("\n", "") in shown.text
    assert len(table_as_markdown(["question"], [[text]]).split("\n")) == 3  # the text stays in its cell


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])))
def test_markdown_shows_any_text_unchanged(text):
    read = Read(markdown(f"x{escape_markdown(text)}x"))
    assert read.tags <= {"p"} and read.text == f"x{text}x"


def test_colours_and_numbers():
    page = ColouredSteps(["bad", "so so", "good"], [0.0, 0.5, 1.0], [0.25, 0.5, 1.0]).to_html()
    low, middle, high = ("rgb(230,140,80)", "rgb(250,246,232)", "rgb(110,175,225)")
    assert [page.index(colour) for colour in (low, middle, high)] == sorted(page.index(c) for c in (low, middle, high))
    assert Read(page).text == "0.00 (label 0.25) bad0.50 (label 0.50) so so1.00 (label 1.00) good"
    lines = ColouredSteps(["a", "b", "c"], [0.2, 0.5, 1.0]).to_markdown()
    assert lines == "🟧 0.20 a<br>⬜ 0.50 b<br>🟦 1.00 c"


def test_a_solution_without_scores():
    page = ColouredSteps(["a"], []).to_html()
    assert "background" not in page and Read(page).text == "not scored a"
    assert ColouredSteps([], []).to_markdown() == ""


def test_nan_scores_have_no_colour():
    solution = ColouredSteps(["a", "b"], [float("nan"), 0.9])
    assert solution.to_html().count("background") == 1 and Read(solution.to_html()).text == "nan a0.90 b"
    assert solution.to_markdown() == "nan a<br>🟦 0.90 b"


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(
    st.text(st.characters() | st.sampled_from("<>&\"'|\n\x00\ud800\u202e`*")),
    st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=3),
)
def test_any_text_is_escaped(text, scores):
    solution = ColouredSteps([text] * max(len(scores), 1), scores, [0.5] * max(len(scores), 1))
    page = Read(table_as_html([text], [[text, solution, 0.1]]))
    assert page.tags <= TAGS and page.attributes <= {"style"}
    lines = table_as_markdown([text, "steps"], [[text, solution]])
    shown = Read(markdown(lines, extensions=["tables"]))
    assert shown.tags <= TAGS | {"thead", "tbody", "p"} and not shown.attributes
