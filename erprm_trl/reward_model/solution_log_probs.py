"""Computes the log-probabilities of a solution's tokens under a causal language model, for training and scoring of
implicit process reward models."""

import torch
from torch import Tensor, nn

from ..functional.implicit_rewards import selected_log_probs, step_log_prob_sums
from .attention import is_causal, known_packing
from .step_logits import narrowed_head


def solution_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    prompt_lengths: Tensor,
    last_positions: Tensor,
    unwrapped: nn.Module | None = None,
    solution_index: Tensor | None = None,
) -> Tensor:
    """
    Log-probabilities of the tokens of each solution. Logits are computed only where these tokens are predicted.

    Args:
        model (`torch.nn.Module`):
            Causal language model, possibly wrapped by DDP or DeepSpeed.
        input_ids (`torch.Tensor`):
            Token ids of shape (B, T), padded on the right.
        attention_mask (`torch.Tensor` or `None`):
            Mask of shape (B, T).
        prompt_lengths (`torch.Tensor`):
            Number of tokens of each question, of shape (B,).
        last_positions (`torch.Tensor`):
            Index of each solution's last token, of shape (B,).
        unwrapped (`torch.nn.Module`, *optional*):
            The transformers or PEFT model inside `model`. Defaults to `model`.
        solution_index (`torch.Tensor`, *optional*):
            Index of each of these tokens in the flattened `input_ids`. Without it, an accelerator waits for the host,
            which computes it from `prompt_lengths` and `last_positions`.

    Returns:
        `torch.Tensor`: float32 of shape (B, T), with 0 at tokens outside the solution. The first token of a text has
        no probability, so it counts as outside.
    """
    if solution_index is None:
        token = torch.arange(input_ids.shape[1], device=input_ids.device)
        inside = (token >= prompt_lengths[:, None].clamp(min=1)) & (token <= last_positions[:, None])
        solution_index = inside.flatten().nonzero().squeeze(1)
    rows, tokens = solution_index // input_ids.shape[1], solution_index % input_ids.shape[1]
    network = unwrapped if unwrapped is not None else model
    if is_causal(network):
        attention_mask = None
    with narrowed_head(network.get_output_embeddings(), (rows, tokens - 1)), known_packing(False):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    log_probs = selected_log_probs(logits, input_ids[rows, tokens].to(logits.device)).to(input_ids.device)
    return log_probs.new_zeros(input_ids.shape).index_put((rows, tokens), log_probs)


def solution_sums(model: nn.Module, batch: dict[str, Tensor], unwrapped: nn.Module | None = None) -> Tensor:
    """Log-probability of each solution of a batch of [`DataCollatorForStepLabels`] up to its last label, of shape (B,)
    in float64. For `unwrapped` see [`solution_log_probs`]."""
    ends = (batch["step_positions"] * batch["step_mask"]).max(-1).values
    log_probs = solution_log_probs(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        batch["prompt_lengths"],
        ends,
        unwrapped,
        batch.get("solution_index"),
    )
    return step_log_prob_sums(log_probs, ends[:, None])[:, 0]
