"""GRPO whose advantages differ from step to step: TRL's `GRPOTrainer` with a process reward model."""

from typing import Any

from torch import Tensor

from ...functional.advantages import group_step_advantages, spread_over_steps, subtract_initial_value
from .step_trainer import GlobalSteps, StepTrainer


class StepGRPOTrainer(StepTrainer):
    """
    Trainer for Group Relative Policy Optimization with step rewards: each token's advantage is the sum of the
    normalised rewards of the steps that end at or after it, plus the outcome's.

    Example:

    ```python
    >>> from erprm_trl import StepGRPOConfig, StepGRPOTrainer

    >>> trainer = StepGRPOTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B-Instruct",
    ...     reward_funcs="outputs/my-erprm",
    ...     args=StepGRPOConfig("my-policy", credit="difference"),
    ...     train_dataset=dataset,  # "prompt", and "answer" where it is known
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, as in [`~trl.GRPOTrainer`]. The training of a saved adapter, named by its folder or Hub id,
            goes on.
        reward_funcs ([`StepRewardFunction`], [`StepScorer`] or its backend, `str`, or a `list` with one of them):
            The process reward model (a path, id or scoring server's address), and any reward functions of TRL beside
            it. Those, and the graded answer that is added where the dataset has answers, make the outcome part.
        args ([`StepGRPOConfig`], *optional*):
            Configuration. A [`~trl.GRPOConfig`] becomes one; its other settings have their defaults.
        train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers,
        quantization_config, peft_config (*optional*):
            As in [`~trl.GRPOTrainer`]. A column `question` holds the bare question if the prompt is not it, a column
            `answer` the reference answers.

    Logged beside GRPO's metrics, means over completions: `reward_parts/step`, the sum of the rewards that `credit`
    pays the steps, the first one from 0 on; `reward_parts/outcome`, the weighted outcome (0 where there is none), both
    before they are normalised; and with a `beta` that is not 0 `reward_parts/kl`, minus beta times the summed KL of
    the loss.

    Raises:
        `ValueError`: if there is not exactly one process reward model among `reward_funcs`; if all weights of the
            policy are frozen, or a saved adapter comes with a `peft_config`.
        `TypeError`: if `args` has settings that [`StepGRPOConfig`] does not have.
    """

    _tag_names = ["trl", "erprm-trl", "step-grpo"]
    _name = "Step GRPO"

    def _set_advantages(self, output: dict[str, Any], steps: GlobalSteps) -> None:
        rewards = self._step_rewards(steps)
        self._log_reward_parts(steps, rewards)
        output["advantages"] = self._token_advantages(steps, rewards, output["completion_mask"])

    def _log_reward_parts(self, steps: GlobalSteps, rewards: Tensor) -> None:
        # From 0, not from the question's value: the mean over a group of what is paid from there is always 0.
        parts = {"step": rewards.masked_fill(~steps.mask, 0.0).sum(-1)}
        if self.outcome_weight:
            parts["outcome"] = self.outcome_weight * steps.outcomes.nan_to_num(0.0)
        for name, part in parts.items():
            self.metrics_of_mode[f"reward_parts/{name}"].append(part.mean().item())

    def _token_advantages(self, steps: GlobalSteps, rewards: Tensor, completion_mask: Tensor) -> Tensor:
        """Advantages (B, T) of this process's tokens, 0 at padding."""
        size, scale = self._group_size, self.scale_rewards
        num_tokens = completion_mask.shape[1]
        if self.args.credit == "outcome":  # one reward per solution: normalised over solutions, as in GRPO
            scores, answered = steps.solution_scores(self.aggregation), steps.mask.any(-1)
            advantages = group_step_advantages(scores[:, None], answered[:, None], size, scale=scale)
            advantages = advantages[steps.local].expand(-1, num_tokens)
        else:
            if self.args.credit == "difference":
                # The question is worth the mean of the group's solutions. With any other start the mean of a group's
                # differences is not 0, and centring them would pay for every step, or punish it.
                rewards = subtract_initial_value(rewards, steps.mask, self._question_values(steps))
            of_steps = group_step_advantages(rewards, steps.mask, size, scale=scale, gamma=self.args.gamma)
            advantages = spread_over_steps(of_steps[steps.local], steps.token_ends, steps.local_mask, num_tokens)
        if self.outcome_weight:
            graded = ~steps.outcomes.isnan()
            outcome = group_step_advantages(steps.outcomes[:, None], graded[:, None], size, scale=scale)
            advantages = advantages + self.outcome_weight * outcome[steps.local]
        return advantages * completion_mask
