"""The reward function that grades answers."""

import functools

import pytest

from erprm_trl import dial
from erprm_trl.policy.answer_reward import AnswerReward


def test_missing_answers_give_none():
    reward = AnswerReward(grading="exact", answer_pattern=dial.ANSWER_PATTERN)
    completions = ["1 ки answer 4", [{"role": "assistant", "content": "answer 5"}], "answer 6", "answer 7", ""]
    answers = ["4", "4", None, " ", "3"]
    assert reward(["q"] * 5, completions, answer=answers) == [1.0, 0.0, None, None, 0.0]
    assert AnswerReward("final")(["q"], ["\\boxed{4}"], final=[None]) == [None]
    with AnswerReward("final").grader as grader:
        assert grader.grade(["\\boxed{4}"], ["4"]) == [1.0]


def test_answers_are_read_like_those_of_questions():
    reward = AnswerReward(grading="exact")
    answers = [18, 18.0, float("nan"), [{"role": "assistant", "content": "18"}], "So it is #### 18", "18.0"]
    assert reward(["q"] * 6, ["#### 18"] * 6, answer=answers) == [1.0, 1.0, None, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"answer\[1\] holds no reference answer \(got \"\['18'\]\", list, expected"):
        reward(["q"] * 2, ["#### 18"] * 2, answer=["18", ["18"]])


def test_a_missing_column_of_answers_is_an_error():
    reward = AnswerReward("final", grading="exact")
    columns = {"solution": ["1"], "level": [2], "completion_ids": [[1]], "trainer_state": None}
    with pytest.raises(
        ValueError, match=r"the columns \['level', 'solution'\], expected 'final'.*AnswerReward\('solution'\)"
    ):
        reward(["q"], ["#### 1"], **columns)
    assert AnswerReward("solution", grading="exact")(["q"], ["#### 1"], **columns) == [1.0]


def test_a_string_instead_of_a_list_is_an_error():
    with pytest.raises(ValueError, match=r"got '1' \(str\) as `completions`, expected a list with one value for each"):
        AnswerReward(grading="exact")(["q"], "1", answer=["1"])
    with pytest.raises(ValueError, match=r"got '12' \(str\) as `answer`, expected a list .* each of 2 completions"):
        AnswerReward(grading="exact")(["q"] * 2, ["1", "2"], answer="12")


def test_answers_in_the_thinking_have_no_reward():
    completions = [r"<think>\boxed{4}", r"<think>5</think>\boxed{4}", r"\boxed{4}"]
    assert AnswerReward(grading="exact")(["q"] * 3, completions, answer=["4"] * 3) == [0.0, 1.0, 1.0]
    assert AnswerReward(grading="exact", reasoning=True)(["q"] * 3, completions, answer=["4"] * 3) == [0.0, 1.0, 0.0]


def test_a_partial_function_may_grade():
    reward = AnswerReward(grading=functools.partial(_close, tolerance=1))
    assert reward(["q"] * 2, ["5", "7"], answer=["4", "4"]) == [1.0, 0.0]


def _close(completion, answer, tolerance):
    return float(abs(int(completion) - int(answer)) <= tolerance)
