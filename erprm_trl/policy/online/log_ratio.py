"""The credit `"log_ratio"`: steps get a return from the graded outcome and from the log-ratio of policy and reference,
so that no reward model is needed.

The KL of the policy from its reference is a part of these returns. TRL's loss must therefore not contain it, too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...functional.advantages import log_ratio_returns
from ...functional.masked import masked_moments
from ...functional.policy_losses import kl_estimate
from ...reward_model.prm_format import PRMFormat
from ..reward_function import StepRewardFunction
from ..scored_batch import ScoredBatch
from .rollout_log_probs import rollout_log_probs
from .tool_tokens import loss_mask


SPLITTER = "whole_lines"
NO_OUTCOME = (
    "{subject}: got credit='log_ratio' without an outcome, expected answers or a reward function. Add a column "
    "{column!r} to the training dataset (it has {columns}), set answer_column, or pass a reward function in "
    "reward_funcs."
)
REWARD_MODEL = (
    "{subject}: got a process reward model with credit='log_ratio', which does not use step scores, expected only "
    "reward functions of outcomes. Remove it from reward_funcs, or choose another credit."
)


def refuse_no_outcome(subject: str, args: Any, columns: list[str]) -> None:
    """Raises a `ValueError`, because there are neither answers nor reward functions."""
    raise ValueError(NO_OUTCOME.format(subject=subject, column=args.answer_column, columns=", ".join(columns)))


class UnscoredSteps:
    """A scoring backend without a model. It gives every step the score 0, so that completions are only split."""

    model_name, context_length, weights = "steps without scores", None, None

    def __init__(self, splitter: str):
        self.prm_format = PRMFormat(splitter=splitter)

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool):
        """Returns a score of 0 for each step."""
        return [[0.0] * len(solution) for solution in steps]


def step_splitter(args: Any) -> StepRewardFunction:
    """Returns a function that splits completions, and is not one of the trainer's reward functions."""
    function = StepRewardFunction(UnscoredSteps(args.splitter or SPLITTER))
    if args.step_tokens is not None:  # steps are only counted
        function.single_step_warning = None
    return function


def split_completions(trainer, inputs: list, prompts: list, completions: list, token_ids: list) -> ScoredBatch:
    """Splits the completions of a trainer without a reward model into steps, and logs the metrics of steps."""
    keys = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
    columns = {key: [row[key] for row in inputs] for key in keys}
    if trainer.environments is not None:
        columns["environments"] = trainer.environments
    batch = trainer.step_reward.score_batch(prompts, completions, token_ids, **columns)
    for name, value in batch.metrics.items():
        if name != "steps/mean_score":
            trainer._log_metric(name, value)  # seam
    return batch


def log_ratio_advantages(trainer, output: dict[str, Any], token_ends: Tensor, step_mask: Tensor) -> Tensor:
    """
    Computes the advantages of this process's tokens, and logs the parts of the reward and the KL.

    Args:
        trainer ([`StepGRPOTrainer`]):
            The trainer, whose `beta` is the strength of the KL.
        output (`dict`):
            TRL's batch. Its `advantages` (B,) are the normalised outcomes.
        token_ends (`torch.Tensor`):
            Index (B, S) of the last token of each step.
        step_mask (`torch.Tensor`):
            Booleans (B, S), True at real steps.

    Returns:
        `torch.Tensor`: advantages (B, T).
    """
    mask = loss_mask(output)
    num_tokens, size = mask.shape[1], trainer.args.step_tokens
    if size is not None:
        token_ends = torch.arange(num_tokens, device=mask.device)[size - 1 :: size].expand(len(mask), -1)
        step_mask = torch.ones_like(token_ends, dtype=torch.bool)
    logps, ref_logps = rollout_log_probs(trainer, output), output["ref_per_token_logps"]
    metrics, gather = trainer.metrics_of_mode, trainer.accelerator.gather
    kl = ((logps - ref_logps) * mask).sum(-1)
    metrics["reward_parts/kl"].append(-trainer.beta * gather(kl).mean().item())
    per_token = kl_estimate(logps, ref_logps, "k3")
    total = masked_moments(per_token, mask, lambda tensor: trainer.accelerator.reduce(tensor, reduction="sum"))
    metrics["kl"].append(total[1].item())
    advantages = trainer.outcome_weight * output["advantages"]
    return log_ratio_returns(advantages, logps, ref_logps, mask, token_ends, step_mask, beta=trainer.beta)
