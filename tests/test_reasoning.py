"""Tests the parts of completions with reasoning delimiters."""

import pytest

from erprm_trl.reasoning import answer_start, graded_text, prompt_opens_thinking


@pytest.mark.parametrize(
    ("text", "reasoning", "expected"),
    [
        ("2 + 2 = 4", None, "2 + 2 = 4"),
        ("<think>5?</think>\nIt is 4.", None, "\nIt is 4."),
        ("5?</think>It is 4.", None, "It is 4."),
        ("<think>5?</think>No.<think>4?</think>It is 4.", None, "It is 4."),
        ("<think>It is \\boxed{4}", None, None),
        ("<think>5?</think>No.<think>4?", None, None),
        ("It is \\boxed{4}", True, None),
        ("5?</think>It is 4.", True, "It is 4."),
        ("<think>It is 4.", False, "<think>It is 4."),
        ("<think>x</think> so <answer>4</answer> done", None, "4"),
        ("<answer>3</answer> no, <answer>4</answer>", None, "4"),
        ("<think>x</think><answer>4", None, "4"),
        ("<think><answer>3</answer></think> 4", None, " 4"),
        ("<answer>4</answer>", False, "<answer>4</answer>"),
        ("", None, ""),
        ("", True, None),
    ],
)
def test_the_graded_part_of_a_completion(text, reasoning, expected):
    assert graded_text(text, reasoning) == expected


def test_the_start_of_the_answer():
    assert answer_start("<think>a</think>b") == len("<think>a</think>")
    assert answer_start("b") == 0
    assert answer_start("<think>a") is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("<|Assistant|><think>\n", True), ("<think>\n\n</think>\n\n", False), ("<|im_start|>assistant\n", False)],
)
def test_a_prompt_that_opens_the_thinking(prompt, expected):
    assert prompt_opens_thinking(prompt) == expected
