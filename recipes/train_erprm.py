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
        default=None,
        metadata={"help": "Instead of rollouts: labelled steps. Hub id, file, folder or package.module:f."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its training split."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split for evaluation."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read it while training; needs --max_steps."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Another dataset for evaluation."})
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def main(data: DataArguments, training: ERPRMConfig, model: trl.ModelConfig) -> "erprm_trl.ERPRMTrainer":
    """Runs one training and saves the model."""
    if (data.rollouts is None) == (data.dataset_name is None):
        raise ValueError("Give either --rollouts or --dataset_name.")
    train_dataset, eval_dataset = data.rollouts, data.eval_rollouts
    if data.dataset_name is not None:
        load, config = erprm_trl.load_labelled_steps, data.dataset_config
        train_dataset = load(
            data.dataset_name, config_name=config, split=data.dataset_train_split, streaming=data.dataset_streaming
        )
        if data.eval_dataset_name is not None or data.dataset_test_split is not None:
            name, split = data.eval_dataset_name or data.dataset_name, data.dataset_test_split or "train"
            eval_dataset = load(name, config_name=config, split=split)
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
