"""Trains a policy with DPO on preference pairs.

erprm dpo --recipe dial
erprm dpo --dataset_name outputs/pairs --model_name_or_path Qwen/Qwen2.5-Math-1.5B-Instruct --output_dir outputs/dpo
"""

from dataclasses import dataclass, field
from typing import ClassVar

import trl

from .. import policy, scripts
from ..io.counts import counted
from ..rollouts.row_sources import as_dataset, read_rows
from .console import stage
from .outcome import first_and_last, print_outcome
from .training import model_options, save


METRICS = {
    "loss": "training loss",
    "rewards/margins": "difference of the implicit rewards",
    "rewards/accuracies": "pairs with the chosen text ahead",
    "eval_loss": "evaluation loss",
    "eval_rewards/accuracies": "the same on the evaluation pairs",
}


@dataclass
class DataArguments:
    """The preference pairs."""

    EVALUATION_DATA: ClassVar = ("eval_dataset_name", "dataset_test_split")

    dataset_name: str = field(
        metadata={
            "help": "Source of the pairs: a folder of erprm pairs, a file, a Hub id, or package.module:function."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split with the training pairs."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split with the evaluation pairs."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Source of the evaluation pairs, if it is another dataset."}
    )
    resume: bool = field(default=False, metadata={"help": "Whether to resume from the last checkpoint in output_dir."})


def main(data: DataArguments, training: "trl.DPOConfig", model: "trl.ModelConfig") -> "policy.StepDPOTrainer":
    """Trains a policy and saves it."""
    stage("Loading the pairs and the policy")
    train_dataset = load_pairs(data.dataset_name, data.dataset_config, data.dataset_train_split)
    eval_dataset = None
    if data.eval_dataset_name is not None or data.dataset_test_split is not None:
        name, split = data.eval_dataset_name or data.dataset_name, data.dataset_test_split or "train"
        eval_dataset = load_pairs(name, data.dataset_config, split)
    trainer = policy.StepDPOTrainer(
        train_dataset=train_dataset, eval_dataset=eval_dataset, **model_options(model, training)
    )
    scripts.show_training(trainer, "Training the policy")
    trainer.train(resume_from_checkpoint=data.resume or None)
    save(trainer)
    print_outcome(
        f"The policy was saved in {training.output_dir} after {counted(trainer.state.global_step, 'update')}.",
        *first_and_last(trainer.state.log_history, METRICS),
        next_command=f"erprm collect --model_name_or_path {training.output_dir} --num_continuations 0 "
        "--dataset_name QUESTIONS --output_dir SAMPLES",
    )
    return trainer


def load_pairs(source: str, config_name: str | None, split: str):
    """
    Loads preference pairs.

    Args:
        source (`str`):
            A folder of `erprm pairs`, a file, a Hub id, or `package.module:function`.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`):
            Split of a dataset with several splits.

    Raises:
        `ValueError`: if there are no pairs, or if their columns are missing.
    """
    dataset = as_dataset(read_rows(source, config_name, split, {}), str(source))
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not {"chosen", "rejected"} <= set(columns):
        raise ValueError(
            f"{source}: got the columns {columns}, expected prompt, chosen and rejected. Make pairs with erprm pairs."
        )
    return dataset
