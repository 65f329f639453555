"""Graded answers as a reward function."""

from erprm_trl import dial
from erprm_trl.policy.answer_reward import AnswerReward


def test_answers_that_are_missing_are_none_and_not_wrong():
    reward = AnswerReward(grading="exact", answer_pattern=dial.ANSWER_PATTERN)
    completions = ["1 ки answer 4", [{"role": "assistant", "content": "answer 5"}], "answer 6", "answer 7", ""]
    answers = ["4", "4", None, " ", "3"]
    assert reward(["q"] * 5, completions, answer=answers) == [1.0, 0.0, None, None, 0.0]
    assert AnswerReward("final")(["q"], ["\\boxed{4}"], final=[None]) == [None]
    with AnswerReward("final").grader as grader:
        assert grader.grade(["\\boxed{4}"], ["4"]) == [1.0]
