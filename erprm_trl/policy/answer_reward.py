"""Graded answers as a TRL reward function: `GRPOTrainer(reward_funcs=[AnswerReward()])`."""

from typing import Any

from ..rollouts.grading.grader import Grader
from .completions import completion_text


class AnswerReward:
    """
    A graded answer as a reward function: 1.0 right, 0.0 wrong, `None` where the dataset has no answer.

    Args:
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Dataset column of the reference answers: bare, in a `\\boxed{}`, or after `####`. Rows may lack one.
        grading (`str` or `Callable`, *optional*, defaults to `"math"`), answer_pattern (`str`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
    """

    __name__ = "answer_reward"

    def __init__(self, answer_column: str = "answer", grading="math", answer_pattern: str | None = None):
        self.answer_column = answer_column
        self.grader = Grader(grading, answer_pattern=answer_pattern)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Grades a batch; TRL calls it."""
        answers = columns.get(self.answer_column) or [None] * len(completions)
        known = [index for index, answer in enumerate(answers) if answer is not None and str(answer).strip()]
        rewards: list[float | None] = [None] * len(completions)
        graded = self.grader.grade(
            [completion_text(completions[index]) for index in known], [str(answers[index]) for index in known]
        )
        for index, reward in zip(known, graded, strict=True):
            rewards[index] = reward
        return rewards
