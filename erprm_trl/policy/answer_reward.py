"""A TRL reward function that grades final answers: `GRPOTrainer(reward_funcs=[AnswerReward()])`."""

from collections.abc import Callable
from typing import Any

from ..rollouts.grading.grader import Grader
from ..rollouts.questions import ANSWER_COLUMNS
from ..rollouts.reference_answers import reference_text
from .completions import NO_COLUMNS, completion_text


class AnswerReward:
    """
    A reward function that grades the final answer: 1.0 for a right answer, 0.0 for a wrong answer, and `None` if the
    dataset has no answer.

    Args:
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Dataset column of the reference answers, which are bare, in a `\\boxed{}`, or after `####`. Numbers are
            read as in [`~erprm_trl.rollouts.load_questions`]. A missing answer is `None`, NaN, or blank text.
        grading, answer_pattern, reasoning (*optional*):
            See [`~erprm_trl.rollouts.Grader`].
    """

    __name__ = "answer_reward"

    def __init__(
        self,
        answer_column: str = "answer",
        grading: str | Callable[[str, str], float] = "math",
        answer_pattern: str | None = None,
        reasoning: bool | None = None,
    ):
        self.answer_column = answer_column
        self.grader = Grader(grading, answer_pattern=answer_pattern, reasoning=reasoning)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """
        Grades a batch. TRL calls this method.

        Args:
            prompts (`list`):
                Prompts, as texts or conversations.
            completions (`list`):
                Completions, as texts or conversations.
            columns:
                Other columns of the dataset.

        Returns:
            `list[float | None]`: one reward per completion, `None` for a row without an answer.

        Raises:
            `ValueError`: if the column does not exist, or if a value is not an answer.
        """
        if self.answer_column not in columns:
            names = sorted(set(columns) - NO_COLUMNS)
            usual = [name for name in ANSWER_COLUMNS if name in names]
            fix = f"AnswerReward({usual[0]!r})" if usual else "AnswerReward(answer_column=...)"
            raise ValueError(
                f"AnswerReward: got the columns {names}, expected {self.answer_column!r} among them. Set the column "
                f"of the reference answers with `{fix}`."
            )
        answers, column = columns[self.answer_column], self.answer_column
        for name, values in (("completions", completions), (column, answers)):
            if isinstance(values, str) or len(values) != len(completions):
                raise ValueError(
                    f"AnswerReward: got {str(values)[:60]!r} ({type(values).__name__}) as `{name}`, expected a list "
                    f"with one value for each of {len(completions)} completions. Repeat a value per completion."
                )
        texts = [reference_text(answer, f"{column}[{row}]") for row, answer in enumerate(answers)]
        known = [row for row, text in enumerate(texts) if text is not None]
        rewards: list[float | None] = [None] * len(completions)
        graded = self.grader.grade([completion_text(completions[row]) for row in known], [texts[row] for row in known])
        for row, reward in zip(known, graded, strict=True):
            rewards[row] = reward
        return rewards
