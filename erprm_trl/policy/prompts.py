"""Builds the prompt datasets of TRL's online trainers from questions, and defines their command-line arguments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..io.config_values import read_json_fields
from ..rollouts.questions import Question, load_questions


def prompt_dataset(
    questions: Sequence[Question],
    *,
    prompt_template: str = "{question}",
    system_prompt: str | None = None,
    conversational: bool = False,
    answers: bool = True,
):
    """
    Builds a prompt-only dataset from questions.

    Args:
        questions (`Sequence[Question]`):
            Questions from [`~erprm_trl.rollouts.load_questions`].
        prompt_template (`str`, *optional*, defaults to `"{question}"`):
            Text of a prompt, with `{question}`.
        system_prompt (`str`, *optional*):
            System message of a conversation.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompts are conversations, to which the trainer applies the policy's chat template.
        answers (`bool`, *optional*, defaults to `True`):
            Whether to include the reference answers. Without them the step trainers use only step scores.

    Returns:
        `datasets.Dataset`: dataset with the columns `prompt`, `question` and, if `answers` is true, `answer`.

    Raises:
        `TypeError`: for rows that are not from [`~erprm_trl.rollouts.load_questions`].
        `ValueError`: for a template without `{question}`, or a system prompt without a conversation.
    """
    from datasets import Dataset

    if "{question}" not in prompt_template:
        raise ValueError(
            f"prompt_template: got {prompt_template!r}, expected a text with '{{question}}'. Mark the place of the "
            "question."
        )
    if system_prompt is not None and not conversational:
        raise ValueError(
            f"system_prompt: got {system_prompt!r} for plain-text prompts, expected a conversation. Set "
            "conversational=True (--use_chat_template true on the command line), or put it into prompt_template."
        )
    rows: list[dict[str, Any]] = []
    for index, question in enumerate(questions):
        if not isinstance(question, Question):
            raise TypeError(
                f"questions[{index}]: got a {type(question).__name__}, expected a Question. Pass "
                "load_questions(questions)."
            )
        prompt: Any = prompt_template.replace("{question}", question.question)
        if conversational:
            system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
            prompt = [*system, {"role": "user", "content": prompt}]
        row = {"prompt": prompt, "question": question.question}
        rows.append({**row, "answer": question.answer} if answers else row)
    return Dataset.from_list(rows)


@dataclass
class PromptArguments:
    """
    Arguments for a policy's questions, which `TrlParser` reads from YAML and the command line. See
    [`~erprm_trl.rollouts.load_questions`] and [`prompt_dataset`].
    """

    EVALUATION_DATA: ClassVar = ("dataset_test_split", "eval_questions_kwargs")

    dataset_name: str = field(
        metadata={
            "help": "Source of the questions: a Hub id, a .jsonl, .json, .csv or .parquet file, a folder, or "
            "package.module:function."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split with the training questions."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split with the evaluation questions."})
    train_questions_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments to load the training questions."}
    )
    eval_questions_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Additional arguments to load the evaluation questions from the same dataset_name."},
    )
    max_questions: int | None = field(default=None, metadata={"help": "Maximum number of training questions."})
    max_eval_questions: int | None = field(default=None, metadata={"help": "Maximum number of evaluation questions."})
    use_answers: bool = field(
        default=True, metadata={"help": "Whether to also train on graded answers, and not only on step scores."}
    )
    prompt_template: str = field(default="{question}", metadata={"help": "Text of a prompt, with {question}."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message. It needs a chat template."})
    use_chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether to apply the chat template. Defaults to true if the tokenizer has a template."},
    )

    def __post_init__(self):
        read_json_fields(self, "train_questions_kwargs", "eval_questions_kwargs")

    def datasets(self, tokenizer, *, question_column: str | None = None, answer_column: str | None = None):
        """
        Loads the training dataset and the evaluation dataset (`None` if there is none).

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The policy's tokenizer.
            question_column (`str`, *optional*):
                Column of the questions in the source, see [`~erprm_trl.rollouts.load_questions`]. The columns of the
                returned datasets are always `prompt`, `question` and `answer`.
            answer_column (`str`, *optional*):
                Column of the reference answers in the source.
        """
        conversational = self.use_chat_template
        if conversational is None:
            conversational = getattr(tokenizer, "chat_template", None) is not None
        asked = {
            "train": (self.dataset_train_split, self.train_questions_kwargs, self.max_questions, self.use_answers)
        }
        if self.dataset_test_split is not None or self.eval_questions_kwargs is not None:
            split = self.dataset_test_split or self.dataset_train_split
            asked["eval"] = (
                split,
                self.eval_questions_kwargs or self.train_questions_kwargs,
                self.max_eval_questions,
                True,
            )
        made = {
            name: prompt_dataset(
                load_questions(
                    self.dataset_name,
                    config_name=self.dataset_config,
                    split=split,
                    max_questions=most,
                    dataset_kwargs=kwargs,
                    question_column=question_column,
                    answer_column=answer_column,
                    require_answers=answers,
                ),
                prompt_template=self.prompt_template,
                system_prompt=self.system_prompt,
                conversational=conversational,
                answers=answers,
            )
            for name, (split, kwargs, most, answers) in asked.items()
        }
        return made["train"], made.get("eval")
