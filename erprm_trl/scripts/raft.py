"""Trains a policy in rounds: sample solutions, select by a process reward model, fine-tune.

erprm raft --recipe dial
erprm raft --recipe qwen2.5-math-1.5b-gsm8k --accelerate_config zero2

After a kill, the same command continues where it was.
"""

from dataclasses import dataclass, field
from typing import Any

import trl

import erprm_trl

from .. import scripts
from ..io.config_values import read_json_fields
from ..io.counts import counted
from .console import stage
from .outcome import first_and_last, print_outcome
from .training import model_options, save


METRICS = {
    "raft/mean_score": "score of a sampled solution",
    "raft/picked_score": "score of a selected solution",
    "raft/accuracy": "sampled solutions that are right",
    "raft/picked_accuracy": "selected solutions that are right",
    "eval_accuracy": "evaluation solutions that are right",
    "raft/agreement": "right above wrong solutions (AUC)",
}


@dataclass
class DataArguments:
    """The questions and the reward model."""

    reward_model: str = field(metadata={"help": "Folder, Hub id or scoring server of the reward model."})
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
    max_eval_questions: int | None = field(default=None, metadata={"help": "Maximum number of evaluation questions."})
    use_answers: bool = field(
        default=True,
        metadata={
            "help": "Whether to read the answers, to drop questions whose solutions are all right or all wrong."
        },
    )

    def __post_init__(self):
        read_json_fields(self, "train_questions_kwargs", "eval_questions_kwargs")

    def questions(self, split: str, kwargs: dict[str, Any] | None, answers: bool, **options: Any):
        """Questions as a dataset, without their answers if those are not wanted."""
        from datasets import Dataset

        options |= {"config_name": self.dataset_config, "split": split, "dataset_kwargs": kwargs}
        rows = erprm_trl.load_questions(self.dataset_name, require_answers=answers, **options)
        return Dataset.from_list([row._asdict() if answers else {"question": row.question} for row in rows])


def main(data: DataArguments, training: "erprm_trl.RAFTConfig", model: "trl.ModelConfig") -> "erprm_trl.RAFTTrainer":
    """Runs the rounds and saves the last policy."""
    stage(f"RAFT: {counted(training.num_rounds, 'round')}")
    columns = {"question_column": training.question_column, "answer_column": training.answer_column}
    training.question_column = training.answer_column = None  # the datasets made here have the usual columns
    train = data.questions(data.dataset_train_split, data.train_questions_kwargs, data.use_answers, **columns)
    evaluation = None
    if data.dataset_test_split is not None or data.eval_questions_kwargs is not None:
        split, limit = data.dataset_test_split or data.dataset_train_split, data.max_eval_questions
        evaluation = data.questions(split, data.eval_questions_kwargs, True, max_questions=limit, **columns)
    trainer = erprm_trl.RAFTTrainer(
        reward_model=data.reward_model, train_dataset=train, eval_dataset=evaluation, **model_options(model, training)
    )
    scripts.show_training(trainer, "Fine-tuning the policy")
    trainer.train()
    save(trainer)
    print_outcome(
        f"The policy of the last round was saved in {training.output_dir}.",
        *first_and_last(trainer.state.log_history, METRICS),
        next_command=f"erprm report --folder {training.output_dir}",
    )
    return trainer
