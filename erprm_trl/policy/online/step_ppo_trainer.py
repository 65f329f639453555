"""PPO with step rewards: token rewards, a critic, GAE, and a clipped value loss added to TRL's clipped policy loss."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SyncRefModelCallback

from ...functional.advantages import (
    generalized_advantages,
    place_at_step_ends,
    prefix_values,
    spread_over_steps,
)
from ...functional.masked import explained_variance, masked_moments, masked_whiten
from ...functional.policy_losses import clipped_value_loss, kl_estimate
from ...rollouts.reference_answers import reference_text
from .global_steps import GlobalSteps
from .rollout_log_probs import rollout_log_probs
from .step_config import StepGRPOConfig, StepPPOConfig
from .step_trainer import StepTrainer
from .tool_tokens import loss_mask
from .value_head import (
    SyncRefModelWithoutHead,
    attach_value_head,
    load_value_head,
    save_value_head,
    values_of_rows,
    without_value_head,
)


LACKS_OUTCOME = "lacks_outcome"

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel


class StepPPOTrainer(StepTrainer):
    """
    Trainer for Proximal Policy Optimization with step rewards and a critic.

    The reward of a token is minus beta times its KL. The last token of a step also gets the step's reward, and the
    last token of a completion also gets the weighted outcome. Advantages are computed by GAE, and the policy loss is
    TRL's.

    A row without an answer (and without any other reward) has no outcome, which is not an outcome of 0. Its return is
    the sum of its step rewards alone. With such rows, `critic="head"` has two values: one learns the returns of rows
    with an outcome, and the other learns the returns of rows without one. The advantage of a row is computed with the
    value of its own kind, and a missing outcome is a target of neither. If the dataset has an answer in every row,
    there is one value. `critic="erprm"` expects no outcome for such rows.

    Example:

    ```python
    >>> from erprm_trl import StepPPOConfig, StepPPOTrainer

    >>> trainer = StepPPOTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B-Instruct",
    ...     reward_funcs="outputs/my-erprm",
    ...     args=StepPPOConfig("my-policy", num_iterations=2),
    ...     train_dataset=dataset,  # columns "prompt" and, optionally, "answer"
    ... )
    >>> trainer.train()
    ```

    Args:
        model, reward_funcs, train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks,
        optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory:
            As in [`StepGRPOTrainer`].
        args ([`StepPPOConfig`], *optional*):
            Configuration.

    In addition to GRPO's metrics, it logs `value/loss`, `value/explained_variance` (of the returns, by the values at
    the rollout), `value/clip_fraction`, `value/mean`, `return/mean`, `kl`, and the parts of the reward per completion:
    `reward_parts/step`, `reward_parts/outcome` and `reward_parts/kl`. With `kl_in_reward=False`, the last is the KL of
    the loss, as in [`StepGRPOTrainer`].

    Raises:
        `ValueError`, `TypeError`: as in [`StepGRPOTrainer`]. The weights of the critic do not count as trainable.
    """

    _tag_names = ["trl", "erprm-trl", "step-ppo"]
    _name = "Step PPO"
    _config_class = StepPPOConfig
    _other_configs = (StepGRPOConfig,)

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Any = None,
        args: StepPPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable[..., dict[str, Any]] | None = None,
        environment_factory: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None,
    ):
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            callbacks,
            optimizers,
            quantization_config,
            peft_config,
            tools,
            rollout_func,
            environment_factory,
        )
        self.value_head = None
        if self.args.critic == "head":
            base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            self.value_head = attach_value_head(base, 2 if self._may_lack_outcomes() else 1)
            if self.args.sync_ref_model:
                self.pop_callback(SyncRefModelCallback)
                self.add_callback(SyncRefModelWithoutHead(base, self.ref_model, self.accelerator))
            if self.use_vllm:
                sync_weights = self.vllm_generation.sync_weights

                def sync_policy_weights():
                    with without_value_head(base):
                        sync_weights()

                self.vllm_generation.sync_weights = sync_policy_weights
        self._forwards: list[tuple[Tensor, Tensor | None]] = []

    def _may_lack_outcomes(self) -> bool:
        """Whether some rows may have no outcome although the policy is trained on outcomes."""
        if not self.outcome_weight or self.answer_reward is None:
            return bool(self.outcome_weight)
        dataset, column = self.train_dataset, self.answer_reward.answer_column
        if isinstance(dataset, IterableDataset) or column not in dataset.column_names:
            return True
        return any(reference_text(answer, f"{column}[{row}]") is None for row, answer in enumerate(dataset[column]))

    def _reduce(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    # All forward passes of the policy use this method. A hook on the outermost wrapper (DDP, DeepSpeed, FSDP) reads
    # the values from the output after all other hooks, and gradient checkpointing does not run it twice.
    def _get_per_token_logps_and_entropies(  # seam
        self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
    ):
        values: list[Tensor] = []

        def keep_values(module, inputs, outputs):
            if outputs.get("state_values") is not None:
                values.append(outputs["state_values"][:, -logits_to_keep:])

        hook = model.register_forward_hook(keep_values)
        try:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        finally:
            hook.remove()
        self._forwards.append((result[0], torch.cat(values) if values else None))
        return result

    def _generate_and_score_completions(self, inputs):  # seam
        self._forwards.clear()
        output = super()._generate_and_score_completions(inputs)
        self._forwards.clear()
        return output

    def _set_advantages(self, output: dict[str, Any], steps: GlobalSteps) -> None:
        logps, values = self._rollout_forward(output)
        mask = loss_mask(output).bool()
        questions = None
        if self.value_head is None:
            questions = self._question_values(steps)
            values = self._reward_model_values(steps, questions, mask)
        elif len(self.value_head.bias) > 1:
            output[LACKS_OUTCOME] = steps.outcomes[steps.local].isnan()
            values = values_of_rows(values, output[LACKS_OUTCOME])
        values = values.float() * mask
        rewards = self._token_rewards(steps, questions, mask, logps, output.get("ref_per_token_logps"))
        advantages = generalized_advantages(rewards, values, mask, self.args.gamma, self.args.gae_lambda)
        returns = advantages + values
        self._log_values(values, returns, mask)
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self._reduce)
        output["advantages"] = advantages
        if self.value_head is not None:
            output["old_values"], output["returns"] = values, returns

    def _rollout_forward(self, output) -> tuple[Tensor | None, Tensor | None]:
        """Log-probabilities and values under the policy that sampled. TRL's own forward pass is used if there was
        one."""
        if "old_per_token_logps" not in output:
            if self.value_head is None and not (self.beta != 0.0 and self.args.kl_in_reward):
                return None, None
            self._forwards.clear()
            rollout_log_probs(self, output)
        return self._forwards[0]

    def _token_rewards(
        self,
        steps: GlobalSteps,
        questions: Tensor | None,
        mask: Tensor,
        logps: Tensor | None,
        ref_logps: Tensor | None,
    ) -> Tensor:
        """Rewards of this process's tokens, of shape (B, T)."""
        # A trained critic learns the question's value. With the reward model as critic, it is subtracted here.
        of_steps = self._step_rewards(steps, 0.0 if questions is None else questions)
        of_steps = self._step_weight * self._centered(of_steps, steps.mask, steps)[steps.local]
        rewards = place_at_step_ends(of_steps, steps.token_ends, steps.local_mask, mask.shape[1])
        parts = {"step": rewards.sum(-1)}
        if self.outcome_weight:
            outcomes = self.outcome_weight * steps.outcomes[steps.local].nan_to_num(0.0)
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = (positions * mask).argmax(-1, keepdim=True)
            rewards = rewards.scatter_add(1, last, outcomes[:, None])
            parts["outcome"] = outcomes
        if self.beta != 0.0 and self.args.kl_in_reward:
            penalty = self.beta * kl_estimate(logps, ref_logps, "k1") * mask
            rewards = rewards - penalty
            parts["kl"] = -penalty.sum(-1)
        for name, part in parts.items():
            self.metrics_of_mode[f"reward_parts/{name}"].append(self.accelerator.gather(part).mean())
        return rewards * mask

    def _reward_model_values(self, steps: GlobalSteps, questions: Tensor, mask: Tensor) -> Tensor:
        """The frozen reward model's value of the prefix before each token's step, in units of the later rewards."""
        values = prefix_values(steps.scores, steps.mask, self.aggregation)
        questions = questions[:, None]
        before = torch.cat([questions, values[:, :-1]], dim=-1)[steps.local]
        # With the credit `difference`, the value is already part of the step rewards. Only the outcome is still to
        # come, if there is one.
        graded = ~steps.outcomes[steps.local].isnan()[:, None]
        weight = self.outcome_weight * graded + (self._step_weight if self.args.credit == "outcome" else 0.0)
        of_tokens = spread_over_steps(before, steps.token_ends, steps.local_mask, mask.shape[1])
        # Without steps, the question's value is the baseline of the outcome.
        return weight * torch.where(steps.local_mask.any(-1, keepdim=True), of_tokens, questions[steps.local])

    def _log_values(self, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        metrics = self.metrics_of_mode
        metrics["value/explained_variance"].append(explained_variance(values, returns, mask, self._reduce))
        metrics["value/mean"].append(masked_moments(values, mask, self._reduce)[1])
        metrics["return/mean"].append(masked_moments(returns, mask, self._reduce)[1])

    def _compute_loss(self, model, inputs):  # seam
        self._forwards.clear()
        beta = self.beta
        try:
            # With `kl_in_reward`, the KL must not also be in the loss. TRL's loss reads its coefficient from
            # `self.beta`. At the rollout, the attribute must keep its value, so that TRL computes the reference
            # model's log-probabilities.
            if self.args.kl_in_reward:
                self.beta = 0.0
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        logps, values = self._forwards[0]
        mask = loss_mask(inputs).bool()
        metrics = self.metrics_of_mode
        if beta != 0.0 and self.args.kl_in_reward:
            kl = kl_estimate(logps.detach(), inputs["ref_per_token_logps"], "k3")
            metrics["kl"].append(masked_moments(kl, mask, self._reduce)[1])
        if self.value_head is None:
            return loss
        values = values_of_rows(values, inputs.get(LACKS_OUTCOME))
        losses, clipped = clipped_value_loss(
            values, inputs["old_values"], inputs["returns"], self.args.value_clip_range
        )
        metrics["value/loss"].append(masked_moments(losses.detach(), mask, self._reduce)[1])
        metrics["value/clip_fraction"].append(masked_moments(clipped.float(), mask, self._reduce)[1])
        return loss + self.args.vf_coef * losses.masked_fill(~mask, 0.0).sum() / self._num_tokens_of_update(inputs)

    def _num_tokens_of_update(self, inputs) -> Tensor:
        # Gradients are averaged over processes and summed over accumulated batches, so this is the share of one
        # backward pass.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return tokens

    def create_optimizer(self, *args, **kwargs):
        """Creates the optimizer of [`~transformers.Trainer`]. If `critic_learning_rate` is set, the value head has its
        own parameter group."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.value_head is not None and self.args.critic_learning_rate is not None:
            _own_group(optimizer, list(self.value_head.parameters()), self.args.critic_learning_rate)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the policy. A checkpoint also gets the critic."""
        super().save_model(output_dir, _internal_call=_internal_call)
        # The checkpoints of DeepSpeed and FSDP hold the whole model, including the value head.
        if _internal_call and self.value_head is not None and self.args.should_save and not self._engine_saves:
            save_value_head(self.value_head, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):  # seam
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.value_head is not None and not self._engine_saves:
            load_value_head(self.value_head, resume_from_checkpoint)

    @property
    def _engine_saves(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled


def _own_group(optimizer: torch.optim.Optimizer, parameters: list, learning_rate: float) -> None:
    own = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": parameters, "lr": learning_rate, "weight_decay": 0.0})
