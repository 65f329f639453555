"""GRPO with an advantage per step: TRL's `GRPOTrainer` with a process reward model."""

from typing import Any

import torch
from torch import Tensor

from ...functional.advantages import group_step_advantages, spread_over_steps, subtract_initial_value
from .credit_options import LOG_RATIO
from .global_steps import GlobalSteps
from .log_ratio import log_ratio_advantages
from .step_trainer import StepTrainer
from .tool_tokens import loss_mask


class StepGRPOTrainer(StepTrainer):
    """
    Trainer for Group Relative Policy Optimization with step rewards. The advantage of a token is the sum of the
    normalised rewards of the steps that end at or after the token, plus the normalised outcome. With
    `credit="outcome"`, TRL computes one advantage per completion from the solution's score and the other rewards, as
    in [`~trl.GRPOTrainer`] with a [`StepRewardFunction`].

    Example:

    ```python
    >>> from erprm_trl import StepGRPOConfig, StepGRPOTrainer

    >>> trainer = StepGRPOTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B-Instruct",
    ...     reward_funcs="outputs/my-erprm",
    ...     args=StepGRPOConfig("my-policy", credit="difference"),
    ...     train_dataset=dataset,  # columns "prompt" and, optionally, "answer"
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, as in [`~trl.GRPOTrainer`]. If it is the folder or Hub id of a saved adapter, the training of
            the adapter continues.
        reward_funcs ([`StepRewardFunction`], [`StepScorer`] or its backend, `str`, or a `list` with one of them):
            The process reward model, which may be a path, a Hub id or the address of a scoring server, and optionally
            other reward functions of TRL. The outcome is the weighted sum of the other reward functions and of the
            graded answer, which is added if the dataset has answers. With `credit="log_ratio"`, there is no process
            reward model, and `reward_funcs` may be `None` if the dataset has answers.
        args ([`StepGRPOConfig`], *optional*):
            Configuration. A [`~trl.GRPOConfig`] is converted, with the defaults of [`StepGRPOConfig`].
        train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers,
        quantization_config, peft_config (*optional*):
            As in [`~trl.GRPOTrainer`]. A column `question` holds the bare question if the prompt contains other text,
            and a column `answer` holds the reference answers.
        tools, rollout_func, environment_factory (*optional*):
            As in [`~trl.GRPOTrainer`]. With tools, an environment, or an `env_mask` from `rollout_func`, a step is an
            assistant turn, and tokens that the policy did not write have no advantage. The `get_reward` of an
            environment is part of the outcome.

    In addition to GRPO's metrics, it logs these means over completions before normalisation: `reward_parts/step`, the
    sum of the step rewards, where the first step's difference starts from 0, and `reward_parts/outcome`, the weighted
    outcome (0 without an outcome). If `beta` is not 0, it also logs `reward_parts/kl`, which is minus beta times the
    summed KL of the loss. With `credit="log_ratio"`, `kl` and `reward_parts/kl` are computed at the rollout.

    Raises:
        `ValueError`: if `reward_funcs` does not have exactly one process reward model (none with
            `credit="log_ratio"`), if all weights of the policy
            are frozen, or if a saved adapter is combined with a `peft_config`.
        `TypeError`: if `args` has settings that [`StepGRPOConfig`] does not have.
    """

    _tag_names = ["trl", "erprm-trl", "step-grpo"]
    _name = "Step GRPO"

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):  # seam
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        own_aggregation = self.aggregation == self.step_reward.aggregation
        if self.args.trl_computes_advantages and (self.args.center is not None or not own_aggregation):
            # TRL computes the advantages from the reward function's values, which know neither option.
            steps = self._handoff.take(len(prompts))
            self._handoff.put(steps)
            scores, scored = steps.solution_scores(self.aggregation)[:, None], steps.mask.any(-1, keepdim=True)
            scores = self._centered(scores, scored, steps).masked_fill(~scored, torch.nan)
            rewards_per_func[:, self._step_index] = scores[:, 0].to(rewards_per_func.dtype)
        return rewards_per_func

    def _set_advantages(self, output: dict[str, Any], steps: GlobalSteps) -> None:
        if self.args.credit == LOG_RATIO:
            self._log_reward_parts(steps)
            output["advantages"] = log_ratio_advantages(self, output, steps.token_ends, steps.local_mask)
            return
        rewards = self._step_rewards(steps)
        self._log_reward_parts(steps, rewards)
        if self.args.trl_computes_advantages:
            return
        output["advantages"] = self._token_advantages(steps, rewards, loss_mask(output))

    def _compute_loss(self, model, inputs):  # seam
        if self.args.credit != LOG_RATIO:
            return super()._compute_loss(model, inputs)
        # The KL is a part of the returns. TRL's loss reads its coefficient from `self.beta`, which must keep its value
        # at the rollout, so that TRL computes the reference's log-probabilities.
        beta, self.beta = self.beta, 0.0
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.beta = beta

    def _log_reward_parts(self, steps: GlobalSteps, rewards: Tensor | None = None) -> None:
        # The first difference starts from 0. Starting from the question's value, the group mean would always be 0.
        parts = {}
        if rewards is not None:
            parts["step"] = self._step_weight * rewards.masked_fill(~steps.mask, 0.0).sum(-1)
        if self.outcome_weight:
            parts["outcome"] = self.outcome_weight * steps.outcomes.nan_to_num(0.0)
        for name, part in parts.items():
            self.metrics_of_mode[f"reward_parts/{name}"].append(part.mean())

    def _token_advantages(self, steps: GlobalSteps, rewards: Tensor, mask: Tensor) -> Tensor:
        """Advantages of this process's tokens, of shape (B, T) and 0 where the mask is 0."""
        size, scale = self._group_size, self.scale_rewards
        num_tokens = mask.shape[1]
        if self.args.credit == "difference":
            # The question's value is the mean of the group's solution scores. With any other initial value, the
            # mean of a group's differences is not 0, and centring them would reward or penalise every step.
            rewards = subtract_initial_value(rewards, steps.mask, self._question_values(steps))
        rewards = self._centered(rewards, steps.mask, steps)
        of_steps = group_step_advantages(rewards, steps.mask, size, scale=scale, gamma=self.args.gamma)
        of_steps = self._step_weight * of_steps[steps.local]
        advantages = spread_over_steps(of_steps, steps.token_ends, steps.local_mask, num_tokens)
        if self.outcome_weight:
            graded = ~steps.outcomes.isnan()
            outcome = group_step_advantages(steps.outcomes[:, None], graded[:, None], size, scale=scale)
            advantages = advantages + self.outcome_weight * outcome[steps.local]
        return advantages * mask
