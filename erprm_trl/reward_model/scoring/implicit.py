"""Step scores of implicit process reward models: how much more likely a model makes the steps than a reference."""

import torch
from torch import Tensor, nn

from ..step_logits import narrowed_head


_CHUNK = 1024  # positions whose logits are float32 at a time


@torch.no_grad()
def implicit_log_odds(
    model: nn.Module,
    reference: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_lengths: Tensor,
    step_positions: Tensor,
    step_mask: Tensor,
    *,
    beta: float,
    cumulative: bool,
) -> Tensor:
    r"""
    Log-odds of steps, \\( \beta \sum_i \log \pi(y_i) - \log \pi_{ref}(y_i) \\) over the tokens of the solution up to
    the step's end, or over the step's own.

    Args:
        model, reference (`torch.nn.Module`):
            Causal language models with one tokenizer.
        input_ids, attention_mask (`torch.Tensor`):
            (B, T), padded on the right.
        prompt_lengths (`torch.Tensor`):
            (B,): tokens of the prompt, which count nothing.
        step_positions, step_mask (`torch.Tensor`):
            (B, S): each step's last token, and True at real steps.
        beta (`float`):
            Coefficient.
        cumulative (`bool`):
            Up to the step's end, or the step alone.

    Returns:
        `torch.Tensor`: float32, (number of steps,), in the order of `step_positions[step_mask]`.

    Source: arXiv 2412.01981, the proposition and its cross-entropy objective, whose probability of a right answer is
    the sigmoid of this.
    """
    token = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (step_positions * step_mask).max(-1, keepdim=True).values
    # The first token of a text has no probability.
    rows, tokens = ((token >= prompt_lengths[:, None].clamp(min=1)) & (token <= last)).nonzero(as_tuple=True)
    ratio = torch.zeros(input_ids.shape[0], input_ids.shape[1] + 1, device=input_ids.device)
    for one, sign in ((model, 1), (reference, -1)):
        ratio[rows, tokens + 1] += sign * _log_probs(one, input_ids, attention_mask, rows, tokens).to(ratio.device)
    ends = ratio.double().cumsum(1).gather(1, step_positions + 1)
    if not cumulative:
        ends = torch.cat([ends[:, :1], ends[:, 1:] - ends[:, :-1]], dim=1)
    return (beta * ends[step_mask]).float()


def _log_probs(model, input_ids, attention_mask, rows, tokens) -> Tensor:
    """Log-probabilities of the tokens at (`rows`, `tokens`). Logits are computed where those are predicted alone."""
    with narrowed_head(model.get_output_embeddings(), (rows, tokens - 1)):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    wanted = input_ids[rows, tokens].to(logits.device)[:, None]
    chunks = zip(logits.split(_CHUNK), wanted.split(_CHUNK), strict=True)
    return torch.cat([chunk.float().log_softmax(-1).gather(1, ids)[:, 0] for chunk, ids in chunks])
