"""Tests step splitting on realistic texts with hand-written steps, and on random texts that must be restored
exactly."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor_time import limited_processor_time

from erprm_trl.rollouts import clean_step, clean_steps, split_steps
from erprm_trl.steps import closed_steps, join_steps, step_stops


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
        ("a ки ки b", "ки", ["a", "b"]),  # there is no step between two adjacent separators
        ("\n\n a", "newline", ["a"]),
        ("one step", "newline", ["one step"]),
        ("", "newline", []),
        (" \n\n ", "newline", []),
        ("ки ки", "ки", []),
    ],
)
def test_steps_worked_by_hand(text, splitter, steps):
    pieces = split_steps(text, splitter)
    assert [clean_step(piece, splitter) for piece in pieces] == steps
    assert "".join(pieces) == (text if steps else "")


CHAT = r"""To find how many eggs are left, we subtract:

\[
16 - 3 - 4 = 9
\]

So, she sells 9 eggs.
1. **Revenue:**
   - Each egg costs $2.

   - Thus \(9 \times 2
 = 18\) dollars.
```python
eggs = 9

print(2 * eggs)
```
The rest is:
- 18
### Answer
Janet makes $18 every day.
#### 18"""


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (
            CHAT,
            [
                "To find how many eggs are left, we subtract:\n\n\\[\n16 - 3 - 4 = 9\n\\]\n\n",
                "So, she sells 9 eggs.\n",
                "1. **Revenue:**\n   - Each egg costs $2.\n\n",
                "   - Thus \\(9 \\times 2\n = 18\\) dollars.\n```python\neggs = 9\n\nprint(2 * eggs)\n```\n",
                "The rest is:\n- 18\n",
                "### Answer\nJanet makes $18 every day.\n#### 18",
            ],
        ),
        # Lines that end with a carriage return, and blank lines with a no-break space.
        (
            "Add two and three.\r\n\u00a0\r\nDouble the result.",
            ["Add two and three.\r\n\u00a0\r\n", "Double the result."],
        ),
        # A formula that is never closed ends with its paragraph.
        (
            "It costs $$5 for\none of the books.\n\nTwo cost 10 dollars.",
            ["It costs $$5 for\none of the books.\n\n", "Two cost 10 dollars."],
        ),
        # A fence that is never closed contains the rest of the text.
        (
            "We run this code:\n```\nprint('hello')\n\nprint('world')",
            ["We run this code:\n```\nprint('hello')\n\nprint('world')"],
        ),
        # `\\[2pt]` is a line break, not a formula.
        (
            r"""\begin{cases} 1 \\[2pt]
2 \end{cases}
The second line holds.
Three of them are left.""",
            [
                r"""\begin{cases} 1 \\[2pt]
2 \end{cases}
""",
                "The second line holds.\n",
                "Three of them are left.",
            ],
        ),
        # Models may close `align*` with `align`.
        (
            "Thus\n\\begin{align*}\na &= 1\n\\end{align}\nwhich is the answer.",
            ["Thus\n\\begin{align*}\na &= 1\n\\end{align}\n", "which is the answer."],
        ),
        (
            "So 5.\nOk.\nWe add two and three.\nNext we double it.",
            ["So 5.\nOk.\nWe add two and three.\n", "Next we double it."],
        ),
        (
            "**Add the two numbers**\n2 + 3 = 5 is the sum.\n**Total = 5 + 5**\nThe answer is 10.",
            ["**Add the two numbers**\n2 + 3 = 5 is the sum.\n", "**Total = 5 + 5**\n", "The answer is 10."],
        ),
        # A Chinese character counts as three.
        ("苹果是十二个。\n梨是十个。\n因此共有二十二个。", ["苹果是十二个。\n", "梨是十个。\n", "因此共有二十二个。"]),
        # A dollar sign alone at the end of a line opens a formula. A dollar sign after a number does not.
        (
            "We get $\nx = 5 + 3 + 2\n$ as the sum of them.\nIt costs about 5$\nSo that is the sum.",
            ["We get $\nx = 5 + 3 + 2\n$ as the sum of them.\n", "It costs about 5$\n", "So that is the sum."],
        ),
        ("ab", ["ab"]),
        ("", []),
        ("\n \n", []),
    ],
)
def test_whole_lines_worked_by_hand(text, steps):
    assert split_steps(text, "whole_lines") == steps


@pytest.mark.parametrize(
    "heading", ["Step 2 - ", "step 2: ", "STEP 2) ", "2. ", "> Step 2: ", "- Step 2: ", "**Step 2:** ", "### Step 2. "]
)
def test_headings_of_steps(heading):
    first = heading.replace("2", "1") + "add.\nIt is 1.5 of\n"
    assert split_steps(first + heading + "double.", "step") == [first, heading + "double."]


def test_headings_in_fences_and_numbered_lines_within_named_steps_do_not_start_a_step():
    text = "Step 1: run\n```\nStep 2: no\n1. no\n```\n1. still the first\nStep 2: done"
    assert split_steps(text, "step") == [text[: text.rindex("Step 2")], "Step 2: done"]


REASONING = "<think>\nTwo and three are five.\nDoubled it is ten.\n</think>\n\nWe add and double.\n<answer>10</answer>"


@pytest.mark.parametrize(
    ("steps_of", "steps"),
    [
        ("both", ["Two and three are five.", "Doubled it is ten.", "We add and double.", "10"]),
        ("thinking", ["Two and three are five.", "Doubled it is ten.", "We add and double.\n<answer>10"]),
        ("answer", ["We add and double.", "10"]),
    ],
)
def test_thinking_and_answer(steps_of, steps):
    pieces = split_steps(REASONING, "newline", steps_of)
    assert "".join(pieces) == REASONING
    assert clean_steps(pieces, "newline") == steps


def test_a_short_answer_after_the_thinking_is_a_separate_step():
    pieces = split_steps("<think>Two and three are five.</think>5", "whole_lines")
    assert pieces == ["<think>Two and three are five.</think>", "5"]


def test_thinking_that_is_not_closed():
    text = "<think>Two and three are five.\nDoubled it is"
    assert clean_steps(split_steps(text, "newline"), "newline") == ["Two and three are five.", "Doubled it is"]
    assert split_steps(text, "newline", "thinking") == split_steps(text, "newline")
    assert split_steps(text, "newline", "answer") == []
    with pytest.raises(ValueError, match="steps_of: got 'all', expected one of both, thinking, answer"):
        split_steps(text, "newline", "all")


REAL_PIECES = [
    "Add two and three. ", "So:", "\n", "\n", "\n\n", "\r\n", "\u00a0", "  ", "- 18", "### Sum", "**The sum**",
    "\\[", "\\]", "$$", "\\(", "\\)", "\\\\[2pt]", "```", "```python", "~~~", "\\begin{align}", "\\end{align}",
    "\\begin{cases}", "\\end{cases}", "[asy]", "[/asy]", "Step 1: ", "> step 2 - ", "3. ", "1.5", "x = 4", "<think>",
    "</think>", "<answer>", "</answer>", "The total is 12 eggs", ":",
]  # fmt: skip
real_texts = st.lists(st.sampled_from(REAL_PIECES), max_size=25).map("".join)


@given(
    real_texts,
    st.sampled_from(["whole_lines", "newline", "blank_line", "step"]),
    st.sampled_from(["both", "thinking", "answer"]),
)
def test_the_steps_of_realistic_text_join_to_the_text(text, splitter, steps_of):
    steps = split_steps(text, splitter, steps_of)
    assert "".join(steps) == text or not steps
    assert all(clean_steps(steps, splitter))


@given(
    real_texts.filter(lambda text: "think>" not in text),
    st.sampled_from(["whole_lines", "newline", "blank_line", "step"]),
)
def test_a_solution_cut_after_any_step_splits_into_the_same_steps(text, splitter):
    steps = split_steps(text, splitter)
    for kept in range(1, len(steps)):
        assert split_steps("".join(steps[:kept]), splitter) == steps[:kept]


@given(
    st.lists(st.sampled_from(REAL_PIECES[:-5]), max_size=25).filter(
        lambda pieces: not {"<think>", "</think>"} & {*pieces}
    )
)
def test_closed_steps_do_not_change_when_lines_are_added(pieces):
    lines = "".join(pieces).splitlines(keepends=True)
    whole = clean_steps(split_steps("".join(lines), "whole_lines"), "whole_lines")
    for count in range(len(lines)):
        closed = closed_steps("".join(lines[:count]), "whole_lines")
        assert closed == whole[: len(closed)]


cases = Path(os.environ.get("ERPRM_CASES", "no such folder"), "real_completions.jsonl")


@pytest.mark.skipif(not cases.is_file(), reason="set ERPRM_CASES to a folder with real_completions.jsonl")
def test_real_completions():
    """Real completions of a language model. No step begins inside a formula or a fence, and no step is only a
    delimiter."""
    for line in cases.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        steps = split_steps(text, "whole_lines")
        assert "".join(steps) == text
        for index, step in enumerate(steps):
            before = "".join(steps[:index])
            assert before.count("```") % 2 == 0 and len(re.findall(r"(?<!\\)\$\$", before)) % 2 == 0
            for opening, closing in (("\\[", "\\]"), ("\\(", "\\)"), ("\\begin{", "\\end{")):
                assert before.count(opening) <= before.count(closing), step
            assert len(re.sub(r"[\W_]", "", step)) >= 2
            assert split_steps("".join(steps[: index + 1]), "whole_lines") == steps[: index + 1]


pieces = [*"ab1 \n\t.:*#ки", "Step 1:", "Step 22 :", "ки", "\u0301", "\u202e", "😀", "\x00", "\r\n"]
texts = st.lists(st.sampled_from(pieces), max_size=30).map("".join)


@given(texts, st.sampled_from(["whole_lines", "newline", "blank_line", "step", "ки", " ки", "\n", ".", "ab"]))
def test_joining_restores_the_text_and_no_step_is_empty(text, splitter):
    steps = split_steps(text, splitter)
    if steps:
        assert "".join(steps) == text
    else:
        assert not clean_step(text, splitter)
    assert all(clean_step(step, splitter) for step in steps)


@given(st.text("ab \n\u0301\ud800", max_size=20), st.text("ab \n\u0301", min_size=1, max_size=4))
def test_any_separator_at_any_place(text, splitter):
    """Separators may be at the start, repeated, overlapping, or white space only."""
    steps = split_steps(text, splitter)
    assert "".join(steps) == text or (not steps and not clean_step(text, splitter))
    cleaned = clean_steps(steps, splitter)
    assert all(cleaned) and clean_steps(cleaned, splitter) == cleaned
    for step in cleaned:
        assert not step.startswith(splitter) and not step.endswith(splitter) and step.encode()
    # Without the separator in the text, there is at most one step.
    assert splitter in text or len(steps) <= 1


@pytest.mark.parametrize("splitter", ["newline", "blank_line", "step", "ки"])
@pytest.mark.parametrize("num_steps", [0, 1, 10_000])
def test_many_steps(splitter, num_steps):
    close = {"newline": "\n", "blank_line": "\n \n", "step": "\n", "ки": " ки"}[splitter]
    text = "".join(f"Step {index}: \u202e{index} é😀{close}" for index in range(num_steps))
    steps = split_steps(text, splitter)
    assert "".join(steps) == text and len(steps) == num_steps
    assert clean_steps(steps, splitter) == [f"Step {index}: \u202e{index} é😀" for index in range(num_steps)]
    assert split_steps(close * 10_000, splitter) == []


def test_an_empty_separator_raises():
    with pytest.raises(ValueError, match="got ''.*newline, blank_line, step"):
        split_steps("a", "")


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """An endpoint may send it in JSON, but datasets and tokenizers reject it."""
    assert clean_steps(["a \ud800 b\n", "\udc00", "🙂 é\n"], "newline") == ["a \ufffd b", "\ufffd", "🙂 é"]


def test_lines_keep_their_white_space():
    text = "So:\n  - 2 + 3 = 5. \n\n\t5 - 1 = 4."
    steps = split_steps(text, "raw_lines")
    assert steps == ["So:\n", "  - 2 + 3 = 5. \n\n", "\t5 - 1 = 4."] and "".join(steps) == text
    assert clean_steps(steps, "raw_lines") == ["So:", "  - 2 + 3 = 5. \n", "\t5 - 1 = 4."]
    assert split_steps(" \n\n ", "raw_lines") == [] and step_stops("raw_lines") == ("\n",)


@pytest.mark.parametrize(
    "text",
    ["~" * 100_000 + "`", "</think>\n" * 20_000, "<answer>\n" * 20_000],
    ids=["a fence of tildes", "closed thoughts", "opened answers"],
)
def test_hostile_texts_are_split_in_linear_time(text):
    with limited_processor_time():
        steps = split_steps(text, "whole_lines")

    assert "".join(steps) == (text if steps else "")


def test_a_finished_solution_keeps_a_number_on_its_last_line():
    text = "Step 1: 9 + 9 = 18.\nStep 2: The answer is\n18."

    assert closed_steps(text, "step") == ["Step 1: 9 + 9 = 18.", "Step 2: The answer is"]
    assert closed_steps(text, "step", finished=True) == ["Step 1: 9 + 9 = 18.", "Step 2: The answer is\n18."]


@pytest.mark.parametrize(
    ("splitter", "separator", "text"),
    [
        ("newline", None, "a + b\nc\n"),
        ("whole_lines", None, "a + b\nc\n"),
        ("blank_line", None, "a + b\n\nc\n\n"),
        ("ки", None, "a + b ки c ки"),
        (" ки\n", None, "a + b ки\nc ки\n"),
        ("ки", "ки\n", "a + bки\ncки\n"),
    ],
)
def test_joined_steps_are_split_into_the_same_steps(splitter, separator, text):
    assert join_steps(["a + b", "c"], splitter, separator) == text
    if splitter != "whole_lines":  # which joins short lines
        assert clean_steps(split_steps(text, splitter), splitter) == ["a + b", "c"]
    assert join_steps([], splitter, separator) == ""
    whole = join_steps(["a + b", "c"], splitter, separator, closed=False)
    assert whole.endswith("c") and text.startswith(whole)
