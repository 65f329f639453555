"""Trains a policy with GRPO on step rewards.

python recipes/train_step_grpo.py --config recipes/dial/train_step_grpo.yaml
accelerate launch recipes/train_step_grpo.py --config recipes/qwen2.5-math-1.5b-gsm8k/train_step_grpo.yaml
"""

from dataclasses import dataclass, field

import accelerate
import trl

import erprm_trl
from erprm_trl import StepGRPOConfig
from erprm_trl.io import load_tokenizer
from erprm_trl.policy import PromptArguments


@dataclass
class RewardArguments:
    """What the policy is trained with."""

    reward_model: str = field(metadata={"help": "Folder, Hub id or scoring server of a reward model."})
    guard: bool = field(default=True, metadata={"help": "Warn, and stop the run, when it goes astray."})
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def main(
    prompts: PromptArguments, reward: RewardArguments, training: StepGRPOConfig, model: trl.ModelConfig
) -> "erprm_trl.StepGRPOTrainer":
    """Runs one training and saves the policy."""
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.model_revision,
        padding_side="left",
        trust_remote_code=training.trust_remote_code,
    )
    train_dataset, eval_dataset = prompts.datasets(tokenizer, **training.named_columns)
    training.question_column, training.answer_column = "question", "answer"  # of the prepared datasets
    guard = erprm_trl.PolicyGuard()
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = erprm_trl.StepGRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=reward.reward_model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=[guard] if reward.guard else None,
        quantization_config=trl.get_quantization_config(model),
        peft_config=trl.get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=reward.resume or None)
    if guard.stopped_because:  # what the policy has become is not kept
        print(f"{guard.stopped_because} Last good checkpoint: {guard.last_good_checkpoint}")
        return trainer
    trainer.save_model(training.output_dir)
    trainer.save_state()  # the log, for report.py
    trainer.create_model_card(model_name=training.output_dir.rstrip("/").split("/")[-1])
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main(*trl.TrlParser((PromptArguments, RewardArguments, StepGRPOConfig, trl.ModelConfig)).parse_args_and_config())
    accelerate.PartialState().destroy_process_group()  # at its end torch may abort a launched process
