"""Trains a process reward model on rollouts or on a dataset with step labels.

python recipes/train_erprm.py --config recipes/dial/train_erprm.yaml
accelerate launch recipes/train_erprm.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_erprm.yaml --eta inf
"""

from dataclasses import dataclass, field

import accelerate
import trl

import erprm_trl
from erprm_trl import ERPRMConfig


@dataclass
class DataArguments:
    """Where the labelled steps are."""

    rollouts: str | None = field(default=None, metadata={"help": "Folder of collect_rollouts.py, labelled at --eta."})
    eval_rollouts: str | None = field(default=None, metadata={"help": "Rollouts of other questions, for evaluation."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Instead of rollouts: a dataset with step labels."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Its training split."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Its evaluation split."})
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def main(data: DataArguments, training: ERPRMConfig, model: trl.ModelConfig) -> "erprm_trl.ERPRMTrainer":
    """Runs one training and saves the model."""
    if (data.rollouts is None) == (data.dataset_name is None):
        raise ValueError("Give either --rollouts or --dataset_name.")
    train_dataset, eval_dataset = data.rollouts, data.eval_rollouts
    if data.dataset_name is not None:
        from datasets import load_dataset

        train_dataset = load_dataset(data.dataset_name, split=data.dataset_train_split)
        if data.dataset_test_split is not None:
            eval_dataset = load_dataset(data.dataset_name, split=data.dataset_test_split)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = erprm_trl.ERPRMTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=trl.get_quantization_config(model),
        peft_config=trl.get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=data.resume or None)
    trainer.save_model(training.output_dir)
    trainer.save_state()  # the log, for report.py
    trainer.create_model_card(model_name=training.output_dir.rstrip("/").split("/")[-1])
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main(*trl.TrlParser((DataArguments, ERPRMConfig, trl.ModelConfig)).parse_args_and_config())
    accelerate.PartialState().destroy_process_group()  # at its end torch may abort a launched process
