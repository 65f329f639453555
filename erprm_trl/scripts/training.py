"""Shared by the commands that train: options of the model, online training, and saving."""

import os
from dataclasses import dataclass, field
from typing import Any

import trl

import erprm_trl

from .. import scripts
from ..io import load_tokenizer
from ..io.counts import counted
from ..policy import PromptArguments
from .console import stage
from .outcome import StoppedByGuard, first_and_last, print_outcome
from .scoring import TRAINED_ETA


POLICY_METRICS = {
    "steps/mean_score": "score per step",
    "steps/accuracy": "solutions that are right",
    "steps/per_answer": "steps per solution",
    "completions/mean_length": "tokens per solution",
    "kl": "KL from the reference policy",
}


@dataclass
class RewardArguments:
    """The reward model, and what happens when the policy exploits it."""

    reward_model: str = field(
        metadata={
            "help": "Folder, Hub id, scoring server or scorer file of the reward model. 'none' with the credit "
            "'log_ratio'."
        }
    )
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    guard: bool = field(
        default=True, metadata={"help": "Whether to warn when the policy degenerates, and to stop the run."}
    )
    resume: bool = field(default=False, metadata={"help": "Whether to resume from the last checkpoint in output_dir."})


def model_options(model: trl.ModelConfig, training: Any) -> dict[str, Any]:
    """
    Arguments of a trainer that say which model it trains, and how its weights are loaded.

    Args:
        model ([`~trl.ModelConfig`]):
            Options of the model.
        training (configuration of a trainer):
            Its `model_init_kwargs` are completed in place.

    Raises:
        `RuntimeError`: if each of several processes would train alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and training.world_size == 1:
        raise RuntimeError(
            f"Launched as {launched} processes, but each would train alone: no accelerator is available. Train on the "
            "CPUs with --use_cpu true, or launch on a machine with accelerators."
        )
    need_model(model)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    return {
        "model": model.model_name_or_path,
        "args": training,
        "quantization_config": trl.get_quantization_config(model),
        "peft_config": trl.get_peft_config(model),
    }


def need_model(model: trl.ModelConfig) -> None:
    """Raises a `ValueError` if no model is named."""
    if not model.model_name_or_path:
        raise ValueError("model_name_or_path: got none, expected a folder or Hub id. Pass --model_name_or_path MODEL.")


def save(trainer: Any) -> None:
    """Saves the model, the training's log and a model card, and pushes them to the Hub with `push_to_hub`."""
    training = trainer.args
    trainer.save_model(training.output_dir)
    trainer.save_state()  # the log, which the report page shows
    trainer.create_model_card(model_name=training.output_dir.rstrip("/").split("/")[-1])
    if training.push_to_hub:
        trainer.push_to_hub()


def train_policy(
    trainer_class: type,
    prompts: PromptArguments,
    reward: RewardArguments,
    training: Any,
    model: trl.ModelConfig,
) -> Any:
    """
    Trains a policy online on step rewards, and saves it.

    Args:
        trainer_class (`type`):
            [`~erprm_trl.StepGRPOTrainer`] or [`~erprm_trl.StepPPOTrainer`].
        prompts ([`~erprm_trl.policy.PromptArguments`]):
            Questions.
        reward ([`RewardArguments`]):
            Reward model and guard.
        training ([`~erprm_trl.StepGRPOConfig`] or [`~erprm_trl.StepPPOConfig`]):
            Configuration of the trainer.
        model ([`~trl.ModelConfig`]):
            Options of the policy.

    Returns:
        The trainer, after the training.

    Raises:
        [`StoppedByGuard`]: if the guard stopped the training. The policy is not saved then.
    """
    need_model(model)
    stage("Loading the questions, the policy and the reward model")
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.model_revision,
        padding_side="left",
        trust_remote_code=training.trust_remote_code,
    )
    train_dataset, eval_dataset = prompts.datasets(tokenizer, **training.named_columns)
    training.question_column, training.answer_column = "question", "answer"  # of the prepared datasets
    guard = erprm_trl.PolicyGuard()
    reward_funcs = None if reward.reward_model == "none" else reward.reward_model
    if reward.trained_eta is not None:
        reward_funcs = erprm_trl.StepRewardFunction(
            reward.reward_model,
            aggregation=training.aggregation,
            eta=training.eta,
            scorer_kwargs={"trained_eta": reward.trained_eta},
        )
    trainer = trainer_class(
        reward_funcs=reward_funcs,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=[guard] if reward.guard else None,
        **model_options(model, training),
    )
    scripts.show_training(trainer, "Training the policy")
    trainer.train(resume_from_checkpoint=reward.resume or None)
    if guard.stopped_because:
        raise StoppedByGuard(f"{guard.stopped_because} Last good checkpoint: {guard.last_good_checkpoint}")
    save(trainer)
    print_outcome(
        f"The policy was saved in {training.output_dir} after {counted(trainer.state.global_step, 'update')}.",
        *first_and_last(trainer.state.log_history, POLICY_METRICS),
        next_command=f"erprm report --folder {training.output_dir}",
    )
    return trainer
