"""Scores steps with an implicit process reward model: the log-ratio of the step's probabilities under the model and a
reference model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...functional.implicit_rewards import implicit_reward, step_log_prob_sums
from ..prm_format import PRMFormat
from ..solution_log_probs import solution_log_probs
from .local import LocalBackend


class ImplicitBackend:
    """
    A [`ScoringBackend`] for an implicit process reward model. Both of its models are in this process.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The reward model.
        reference_model ([`~transformers.PreTrainedModel`]):
            The model that the reward model was trained against. It has the same tokenizer and device.
        tokenizer, prm_format, batch_size, max_batch_tokens:
            See [`LocalBackend`].
    """

    def __init__(
        self,
        model: nn.Module,
        reference_model: nn.Module,
        tokenizer,
        prm_format: PRMFormat,
        *,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
    ):
        limits = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        self.local = LocalBackend(model, tokenizer, prm_format, **limits, log_odds=self._log_odds)
        self.model, self.reference_model = self.local.model, reference_model.eval()
        self.tokenizer, self.prm_format, self.token_ids = tokenizer, prm_format, self.local.token_ids
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens

    @property
    def model_name(self) -> str:
        """Folder or Hub id of the reward model."""
        return self.local.model_name

    @property
    def context_length(self) -> int | None:
        """The reward model's context length in tokens."""
        return self.local.context_length

    @property
    def weights(self) -> nn.Module:
        """The reward model."""
        return self.local.weights

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """Scores every step; see [`ScoringBackend.score`]."""
        return self.local.score(questions, steps, skip_too_long)

    def _log_odds(self, batch: dict[str, Tensor]) -> Tensor:
        return implicit_log_odds(
            self.model,
            self.reference_model,
            *(batch[name] for name in ("input_ids", "attention_mask", "prompt_lengths")),
            *(batch[name] for name in ("step_positions", "step_mask")),
            beta=self.prm_format.beta,
            cumulative=self.prm_format.cumulative,
        )


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
    Log-odds of steps, \\( \beta \sum_i \log \pi(y_i) - \log \pi_{ref}(y_i) \\). The sum is over the tokens of the
    solution up to the end of the step, or over the tokens of the step alone.

    Args:
        model (`torch.nn.Module`):
            Reward model, a causal language model.
        reference (`torch.nn.Module`):
            Reference model with the same tokenizer.
        input_ids (`torch.Tensor`):
            Token ids of shape (B, T), padded on the right.
        attention_mask (`torch.Tensor`):
            Mask of shape (B, T).
        prompt_lengths (`torch.Tensor`):
            Number of prompt tokens, of shape (B,). They are not part of the sum.
        step_positions (`torch.Tensor`):
            Index of each step's last token, of shape (B, S).
        step_mask (`torch.Tensor`):
            Mask of shape (B, S), True at real steps.
        beta (`float`):
            Coefficient of the log-ratio.
        cumulative (`bool`):
            Whether the sum covers the solution up to the end of the step, or the step alone.

    Returns:
        `torch.Tensor`: float32 of shape (number of steps,), in the order of `step_positions[step_mask]`.

    Source: arXiv 2412.01981, the proposition and its cross-entropy objective. The sigmoid of these log-odds is its
    probability of a right answer.
    """
    last = (step_positions * step_mask).max(-1).values
    sums = [
        step_log_prob_sums(
            solution_log_probs(network, input_ids, attention_mask, prompt_lengths, last), step_positions, cumulative
        )[step_mask]
        for network in (model, reference)
    ]
    return implicit_reward(*sums, beta)
