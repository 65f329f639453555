"""Trains a process reward model on rollouts or on a dataset with step labels.

erprm train --recipe dial
erprm train --recipe qwen2.5-math-1.5b-gsm8k --eta inf --accelerate_config zero2 --num_processes 8
"""

from dataclasses import dataclass, field

import trl

import erprm_trl

from .. import ERPRMConfig, scripts
from .console import stage
from .outcome import first_and_last, print_outcome
from .scoring import load_scorer
from .training import model_options, save


METRICS = {
    "loss": "training loss",
    "auc": "AUC on the training steps",
    "eval_loss": "evaluation loss",
    "eval_auc": "AUC on the evaluation steps",
    "eval_auc_within_questions": "the same within questions",
}


@dataclass
class DataArguments:
    """The labelled steps."""

    rollouts: str | None = field(default=None, metadata={"help": "Rollout folder, labelled at --eta."})
    eval_rollouts: str | None = field(
        default=None, metadata={"help": "Rollout folder of other questions, for evaluation."}
    )
    agree_with: str | None = field(
        default=None,
        metadata={
            "help": "Scorer that must find the same first error as the continuations, or else a solution is left "
            "out: a folder, Hub id, scoring server or scorer file."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Source of labelled steps instead of rollouts: a Hub id, a file, a folder, or "
            "package.module:function."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split with the training data."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split with the evaluation data."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Whether to stream the dataset. It needs --max_steps."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Source of the evaluation data, if it is another dataset."}
    )
    resume: bool = field(default=False, metadata={"help": "Whether to resume from the last checkpoint in output_dir."})

    def __post_init__(self):
        if (self.rollouts is None) == (self.dataset_name is None):
            raise ValueError(
                f"Training data: got rollouts={self.rollouts!r} and dataset_name={self.dataset_name!r}, expected "
                "either --rollouts or --dataset_name."
            )


def main(data: DataArguments, training: ERPRMConfig, model: trl.ModelConfig) -> "erprm_trl.ERPRMTrainer":
    """Trains a reward model and saves it."""
    stage("Loading the training data and the model")
    train_dataset, eval_dataset = data.rollouts, data.eval_rollouts
    if data.dataset_name is not None:
        load, config = erprm_trl.load_labelled_steps, data.dataset_config
        train_dataset = load(
            data.dataset_name, config_name=config, split=data.dataset_train_split, streaming=data.dataset_streaming
        )
        if data.eval_dataset_name is not None or data.dataset_test_split is not None:
            name, split = data.eval_dataset_name or data.dataset_name, data.dataset_test_split or "train"
            eval_dataset = load(name, config_name=config, split=split)
    judge = None if data.agree_with is None else load_scorer(data.agree_with, training.per_device_eval_batch_size)
    trainer = erprm_trl.ERPRMTrainer(
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        agree_with=judge,
        **model_options(model, training),
    )
    scripts.show_training(trainer, "Training the reward model")
    trainer.train(resume_from_checkpoint=data.resume or None)
    save(trainer)
    print_outcome(
        f"The reward model was saved in {training.output_dir} after {trainer.state.global_step} updates.",
        *first_and_last(trainer.state.log_history, METRICS),
        next_command=f"erprm score --reward_model {training.output_dir} --dataset_name SOLUTIONS.jsonl "
        "--output_dir SCORES",
    )
    return trainer
