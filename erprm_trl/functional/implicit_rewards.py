"""The reward of an implicit process reward model: the log-ratio of the probabilities of a solution under the model and
under a reference model. Pure tensor functions."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .precision import at_least_float32


CHUNK = 1024
"""Number of positions whose logits are converted to float32 at a time, to save memory."""


def selected_log_probs(logits: Tensor, token_ids: Tensor) -> Tensor:
    r"""
    Log-probability of one token per position: \\( \log \mathrm{softmax}(z)_y \\).

    Args:
        logits (`torch.Tensor`):
            Logits z over the vocabulary, of shape (N, V). Half precision is converted to float32, a part of the
            positions at a time. These parts are computed again in the backward pass instead of being kept in memory.
        token_ids (`torch.Tensor`):
            Token y at each position, of shape (N,).

    Returns:
        `torch.Tensor`: log-probabilities of shape (N,), at most 0, in float32, or in float64 if the logits are.
    """

    def log_probs(chunk: Tensor, ids: Tensor) -> Tensor:
        return -F.cross_entropy(at_least_float32(chunk), ids, reduction="none")

    chunks = zip(logits.split(CHUNK), token_ids.split(CHUNK), strict=True)
    if torch.is_grad_enabled() and logits.requires_grad:
        return torch.cat([checkpoint(log_probs, chunk, ids, use_reentrant=False) for chunk, ids in chunks])
    return torch.cat([log_probs(chunk, ids) for chunk, ids in chunks])


def step_log_prob_sums(log_probs: Tensor, step_positions: Tensor, cumulative: bool = True) -> Tensor:
    r"""
    Log-probability of each step's tokens, or of all tokens up to the end of the step.

    $$ L_s = \sum_{t \le e_s} \log \pi(y_t) \quad \text{or} \quad \sum_{e_{s-1} < t \le e_s} \log \pi(y_t) $$

    Args:
        log_probs (`torch.Tensor`):
            Log-probability of each token, of shape (B, T), and 0 for the tokens of the question.
        step_positions (`torch.Tensor`):
            Index e of each step's last token, of shape (B, S), ascending. Padded steps may have any index.
        cumulative (`bool`, *optional*, defaults to `True`):
            Whether the sum covers all tokens up to the end of the step, or the step's tokens alone.

    Returns:
        `torch.Tensor`: sums of shape (B, S) in float64, because the difference of two long sums would lose the digits
        of float32.
    """
    ends = log_probs.double().cumsum(1).gather(1, step_positions)
    return ends if cumulative else torch.cat([ends[:, :1], ends[:, 1:] - ends[:, :-1]], dim=1)


def implicit_reward(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> Tensor:
    r"""
    Implicit reward of a solution or a prefix.

    $$ r = \beta \left( \sum_t \log \pi(y_t) - \sum_t \log \pi_{ref}(y_t) \right) $$

    Args:
        log_probs (`torch.Tensor`):
            Log-probability of each text under the reward model, of shape (N,). For the sums over tokens see
            [`step_log_prob_sums`].
        reference_log_probs (`torch.Tensor`):
            Log-probability of each text under the reference model, of shape (N,).
        beta (`float`):
            Coefficient of the log-ratio.

    Returns:
        `torch.Tensor`: rewards of shape (N,) in float32. The sigmoid of the reward of a whole solution is the
        probability that it is right. The reward is 0 if the two models are equal.

    Source: arXiv 2412.01981, the proposition and its cross-entropy objective.
    """
    return (beta * (log_probs - reference_log_probs)).float()
