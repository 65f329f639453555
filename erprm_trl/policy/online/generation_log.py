"""Checks and logs the rewards and advantages of a generation, with a single copy of values to the host."""

from typing import Any

import torch
from torch import Tensor

from .global_steps import GlobalSteps
from .tool_tokens import loss_mask


def log_generation(trainer, output: dict[str, Any], steps: GlobalSteps) -> None:
    """
    Checks the rewards of a generation, logs the accuracy of its answers, and replaces GRPO's advantages in TRL's log
    of completions by the mean advantage over each completion's tokens.

    Args:
        trainer ([`StepTrainer`]):
            The trainer to log for.
        output (`dict[str, Any]`):
            TRL's batch, with the advantages of the tokens.
        steps ([`GlobalSteps`]):
            The steps and rewards of all processes.

    Raises:
        `FloatingPointError`: if a reward is infinite.
    """
    parts = [steps.rewards.flatten()]
    if not trainer.args.trl_computes_advantages:
        mask = loss_mask(output)
        means = (output["advantages"] * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        parts.append(trainer.accelerator.gather(means).to(steps.rewards.dtype))
    values = torch.cat(parts).cpu()
    _log_on_host(trainer, values[: steps.rewards.numel()].view(steps.rewards.shape), values[steps.rewards.numel() :])


def _log_on_host(trainer, rewards_per_func: Tensor, advantages: Tensor) -> None:
    """Logs values that are on the host."""
    if bool((infinite := rewards_per_func.isinf()).any()):
        row, index = infinite.nonzero()[0].tolist()
        what = f"the reward of {trainer.reward_func_names[index]} for completion {row}"
        raise trainer._not_finite(what, rewards_per_func[row, index].item())
    if trainer.answer_reward is not None:
        graded = rewards_per_func[:, trainer.answer_index]
        trainer.metrics_of_mode["steps/accuracy"].append(graded.nanmean().item())
        if trainer._group_size > 1 and trainer._step_index is not None:
            trainer.metrics_of_mode["steps/agreement"].append(trainer.agreement(rewards_per_func))
    noted = trainer._logs["advantages"]
    for _ in range(min(len(advantages), len(noted))):
        noted.pop()
    noted.extend(advantages.tolist())
