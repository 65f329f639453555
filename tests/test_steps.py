"""Step splitting: real-style texts by hand, and the byte-for-byte identity on anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erprm_trl.rollouts import clean_step, clean_steps, split_steps
from erprm_trl.steps import step_stops


GSM8K = "Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips.\n#### 72"
PARAGRAPHS = "First we expand:\n$x^2$\n\nThen we factor.\n\n\nThe answer is $\\boxed{2}$.\n"
NUMBERED = (
    "Let us think.\nStep 1: Add 2 and 3,\nwhich is 5.\n**Step 2:** As in Step 1: double it.\nStep 3: The answer is 10"
)


@pytest.mark.parametrize(
    ("text", "splitter", "steps"),
    [
        (GSM8K, "newline", ["Natalia sold 48/2 = 24 clips in May.", "She sold 48+24 = 72 clips.", "#### 72"]),
        (PARAGRAPHS, "blank_line", ["First we expand:\n$x^2$", "Then we factor.", "The answer is $\\boxed{2}$."]),
        (
            NUMBERED,
            "step",
            [
                "Let us think.",
                "Step 1: Add 2 and 3,\nwhich is 5.",
                "**Step 2:** As in Step 1: double it.",
                "Step 3: The answer is 10",
            ],
        ),
        (" 7 + 1 = 8 ки 8 * 2 = 16 ки answer 16 ки", "ки", ["7 + 1 = 8", "8 * 2 = 16", "answer 16"]),
        ("a ки ки b", "ки", ["a", "b"]),  # nothing between two separators is no step
        ("\n\n a", "newline", ["a"]),
        ("one step", "newline", ["one step"]),
        ("", "newline", []),
        (" \n\n ", "newline", []),
        ("ки ки", "ки", []),
    ],
)
def test_by_hand(text, splitter, steps):
    pieces = split_steps(text, splitter)
    assert [clean_step(piece, splitter) for piece in pieces] == steps
    assert "".join(pieces) == (text if steps else "")


pieces = [*"ab1 \n\t.:*#ки", "Step 1:", "Step 22 :", "ки", "\u0301", "\u202e", "😀", "\x00", "\r\n"]
texts = st.lists(st.sampled_from(pieces), max_size=30).map("".join)


@given(texts, st.sampled_from(["newline", "blank_line", "step", "ки", " ки", "\n", ".", "ab"]))
def test_joining_restores_the_text_and_no_step_is_empty(text, splitter):
    steps = split_steps(text, splitter)
    if steps:
        assert "".join(steps) == text
    else:
        assert not clean_step(text, splitter)
    assert all(clean_step(step, splitter) for step in steps)


@given(st.text("ab \n\u0301\ud800", max_size=20), st.text("ab \n\u0301", min_size=1, max_size=4))
def test_any_separator_anywhere(text, splitter):
    """At the start, doubled, overlapping itself, white space alone."""
    steps = split_steps(text, splitter)
    assert "".join(steps) == text or (not steps and not clean_step(text, splitter))
    cleaned = clean_steps(steps, splitter)
    assert all(cleaned) and clean_steps(cleaned, splitter) == cleaned
    for step in cleaned:
        assert not step.startswith(splitter) and not step.endswith(splitter) and step.encode()
    # No step's end is lost and none is made: a separator closes a step wherever it follows something.
    assert splitter in text or len(steps) <= 1


@pytest.mark.parametrize("splitter", ["newline", "blank_line", "step", "ки"])
@pytest.mark.parametrize("number", [0, 1, 10_000])
def test_many_steps(splitter, number):
    close = {"newline": "\n", "blank_line": "\n \n", "step": "\n", "ки": " ки"}[splitter]
    text = "".join(f"Step {index}: \u202e{index} é😀{close}" for index in range(number))
    steps = split_steps(text, splitter)
    assert "".join(steps) == text and len(steps) == number
    assert clean_steps(steps, splitter) == [f"Step {index}: \u202e{index} é😀" for index in range(number)]
    assert split_steps(close * 10_000, splitter) == []


def test_empty_separator_is_an_error():
    with pytest.raises(ValueError, match="got ''.*newline, blank_line, step"):
        split_steps("a", "")


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """JSON can hold it, as an endpoint sends it; datasets and tokenizers cannot."""
    assert clean_steps(["a \ud800 b\n", "\udc00", "🙂 é\n"], "newline") == ["a \ufffd b", "\ufffd", "🙂 é"]


def test_lines_keep_their_white_space():
    text = "So:\n  - 2 + 3 = 5. \n\n\t5 - 1 = 4."
    steps = split_steps(text, "line")
    assert steps == ["So:\n", "  - 2 + 3 = 5. \n\n", "\t5 - 1 = 4."] and "".join(steps) == text
    assert clean_steps(steps, "line") == ["So:", "  - 2 + 3 = 5. \n", "\t5 - 1 = 4."]
    assert split_steps(" \n\n ", "line") == [] and step_stops("line") == ("\n",)
