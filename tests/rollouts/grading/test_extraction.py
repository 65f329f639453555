"""Tests the extraction of the final answer from a text."""

import pytest
from processor_time import limited_processor_time

from erprm_trl.rollouts.grading.extraction import extract_answer, find_marked


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        (r"\boxed{3}, no: $\boxed {5}$ it is", "5"),  # the last one counts
        (r"\fbox{7}", "7"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),  # an escaped brace needs no partner
        (r"\boxed{3} and then \boxed{4", "3"),  # cut off before its brace closed
        (r"put it in \boxed{}. \boxed{2}, or \boxed{ }", "2"),
        ("a } stray brace \\boxed{6}", "6"),
        ("5 + 13 = 18\n#### 18 \nbye", "18"),
        ("#### 18\nno:\n#### 19", "19"),
        (r"\boxed{1} #### 2", "1"),
        ("the answer is 4. No, the Answer is: 5.", "5"),
        ("**Answer:** 12\nthanks", "12"),
        ("The answer is the answer is 9", "9"),
        ("The answer is **18**.", "18"),
        ("**The answer is: __18__**", "18"),
        ("The answer is (18).", "18"),
        ("The answer is `18`", "18"),
        (r"The answer is \(18\).", "18"),
        ("The answer is (1,2).", "(1,2)"),
        ("The answer is $[1, 2)$.", "[1, 2)"),
        ("**Answer**: 12 eggs.", "12 eggs"),  # units are dropped in comparisons only
        ("### Final Answer:\n\n18", "18"),  # on the next line with text
        ("The final answer is:\n\\[\n18\n\\]", "18"),
        ("答案：18。", "18"),
        ("#### **$18.50**", "$18.50"),
        ("#### Final Answer: 18 eggs", "18 eggs"),
        ("#### Final Answer\n18", "18"),
        ("#### Step 1: add them\n7+9=16\nThe answer is 16.", "16"),  # a heading of Markdown
        ("#### 3. Add them\n7+9=16, so the answer is 16.", "16"),
        ("#### 18\nThe next question", "18"),
        (r"\boxed{2} and $\boxed{3}$", "2,3"),
        (r"\boxed{2} or \boxed{2}", "2"),
        ("see \\boxed{x}.\n\n**Answer: D**", "D"),  # a last line that is the answer
        ("**Answer:** \\boxed{18} eggs", "18"),
        ("there is nothing here", None),
        ("the answer is\n", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_extract_answer_with_a_pattern_takes_group_1_of_the_last_match():
    assert extract_answer("x=1; x=2; \\boxed{3}", pattern=r"x=(\d)") == "2"
    assert extract_answer("y=1", pattern=r"x=(\d)") is None
    assert extract_answer("x=1 x", pattern=r"x(?:=(\d))?") is None  # the last match has no group


@pytest.mark.parametrize("size", [3_000, 30_000])
def test_extract_answer_is_linear_on_hostile_text(size):
    with limited_processor_time():
        assert extract_answer("\\boxed{" + "{" * size + "1" + "}" * size + "}") == "{" * size + "1" + "}" * size
        assert extract_answer("\\boxed{" * size) is None
        assert extract_answer("\\" * size) is None
        assert extract_answer("answer is " * size) is None
        assert extract_answer("answer" + " " * size) is None
        assert extract_answer("\\boxed{" + "7" * size + "}") == "7" * size


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (r"<think>\boxed{24}?</think> So \boxed{72}.", None, "72"),
        (r"<think>\boxed{24}</think>So it is.", None, None),
        (r"<think>maybe \boxed{72}? Let me", None, None),  # cut off before its answer
        (r"<think>\boxed{72}</think>wait<think>again", None, None),
        ("<think>24</think>\n<answer>Evelyn</answer>", None, "Evelyn"),
        ("<answer>\n**72**.\n</answer>", None, "72"),
        ("<answer>The answer is 72.</answer> #### 5", None, "72"),
        (r"so \boxed{24} </think> \boxed{72}", None, "72"),  # the template opened the thinking
        (r"so \boxed{24}", True, None),
        (r"so \boxed{24} </think> \boxed{72}", True, "72"),
        (r"<think>maybe \boxed{72}", False, "72"),
        ("<answer>Evelyn</answer>", False, None),
    ],
)
def test_the_answer_is_after_the_thinking(text, reasoning, answer):
    assert extract_answer(text, reasoning=reasoning) == answer
    pattern = r"boxed\{(\d+)\}|<answer>(?=(Evelyn))"
    if answer != "Evelyn" and "answer>" not in text:
        assert extract_answer(text, pattern, reasoning) == answer


def test_boxes_far_apart_are_not_one_answer():
    assert find_marked(r"\boxed{2} and then we add one more, so \boxed{3}") == "3"
    assert find_marked(r"\boxed{\boxed{18}}") == "18"
