"""Trains a policy by rounds of sampling, picking with a process reward model, and fine-tuning.

python recipes/train_raft.py --config recipes/dial/train_raft.yaml
accelerate launch recipes/train_raft.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_raft.yaml

Killed at any moment, the same command continues where it was.
"""

from dataclasses import dataclass, field
from typing import Any

import accelerate
import trl
from datasets import Dataset

import erprm_trl
from erprm_trl import RAFTConfig
from erprm_trl.io.config_values import read_json_fields


@dataclass
class DataArguments:
    """The questions and the reward model."""

    reward_model: str = field(metadata={"help": "Folder, Hub id or scoring server of a reward model."})
    dataset_name: str = field(metadata={"help": "Hub id, .jsonl/.json/.csv/.parquet file or package.module:function."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_train_split: str = field(default="train", metadata={"help": "Questions to train on."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Questions to evaluate on."})
    train_questions_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "Of the function."})
    eval_questions_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "For evaluation."})
    max_eval_questions: int | None = field(default=None, metadata={"help": "The first evaluation questions only."})
    use_answers: bool = field(default=True, metadata={"help": "Drop questions that are always right or wrong."})

    def __post_init__(self):
        read_json_fields(self, "train_questions_kwargs", "eval_questions_kwargs")

    def questions(self, split: str, kwargs: dict[str, Any] | None, answers: bool, **options: Any):
        """Questions as a dataset, without their answers if those are not wanted."""
        options |= {"config_name": self.dataset_config, "split": split, "dataset_kwargs": kwargs}
        rows = erprm_trl.load_questions(self.dataset_name, require_answers=answers, **options)
        return Dataset.from_list([row._asdict() if answers else {"question": row.question} for row in rows])


def main(data: DataArguments, training: RAFTConfig, model: trl.ModelConfig) -> "erprm_trl.RAFTTrainer":
    """Runs the rounds and saves the last policy."""
    columns = {"question_column": training.question_column, "answer_column": training.answer_column}
    training.question_column = training.answer_column = None  # the datasets that are made have the usual ones
    train = data.questions(data.dataset_train_split, data.train_questions_kwargs, data.use_answers, **columns)
    evaluation = None
    if data.dataset_test_split is not None or data.eval_questions_kwargs is not None:
        split, limit = data.dataset_test_split or data.dataset_train_split, data.max_eval_questions
        evaluation = data.questions(split, data.eval_questions_kwargs, True, max_questions=limit, **columns)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = erprm_trl.RAFTTrainer(
        model=model.model_name_or_path,
        reward_model=data.reward_model,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        quantization_config=trl.get_quantization_config(model),
        peft_config=trl.get_peft_config(model),
    )
    trainer.train()
    trainer.save_model(training.output_dir)
    trainer.save_state()  # the log, for report.py
    trainer.create_model_card(model_name=training.output_dir.rstrip("/").split("/")[-1])
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main(*trl.TrlParser((DataArguments, RAFTConfig, trl.ModelConfig)).parse_args_and_config())
    accelerate.PartialState().destroy_process_group()  # at its end torch may abort a launched process
