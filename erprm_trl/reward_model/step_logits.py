"""Computes logits only at the positions of step scores, for training and scoring, with any head and any wrapper.

The model runs through its own forward, so that DDP, DeepSpeed, PEFT and the model's post-processing of logits keep
working. Only the computation of the language-model head is restricted during the call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .attention import is_causal, known_packing
from .prm_format import FormatTokenIds


_locks = WeakKeyDictionary()  # one lock per head: only one thread at a time may replace its forward


def step_logits(
    model: nn.Module,
    head: str,
    token_ids: FormatTokenIds,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    step_positions: Tensor,
    step_mask: Tensor,
    unwrapped: nn.Module | None = None,
    rows: Tensor | None = None,
    position_ids: Tensor | None = None,
    step_index: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """
    Computes the logits of all steps of a batch. The memory does not depend on the size of the vocabulary.

    Args:
        model (`torch.nn.Module`):
            The model, possibly wrapped by DDP or DeepSpeed.
        head (`str`):
            `"lm"`, `"token"` or `"token_mlp"`.
        token_ids ([`FormatTokenIds`]):
            Ids of the good and the bad token, for `"lm"`.
        input_ids (`torch.Tensor`):
            Token ids of shape (R, T), padded on the right.
        attention_mask (`torch.Tensor` or `None`):
            Mask of shape (R, T), or `None` if rows hold several solutions.
        step_positions (`torch.Tensor`):
            Index of each step's score in its row, of shape (B, S).
        step_mask (`torch.Tensor`):
            Mask of shape (B, S), True at real steps.
        unwrapped (`torch.nn.Module`, *optional*):
            The transformers or PEFT model inside `model`. Defaults to `model`.
        rows (`torch.Tensor`, *optional*):
            Row of each solution, of shape (B,). Defaults to one row per solution.
        position_ids (`torch.Tensor`, *optional*):
            Position ids of shape (R, T) for rows that hold several solutions. They restart at 0 with each solution.
        step_index (`torch.Tensor`, *optional*):
            Index of each real step in the flattened `step_mask`, of shape (number of steps,). Without it, an
            accelerator waits for the host, which computes it from `step_mask`.
        attention_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of the model: where the solutions begin in a row, for FlashAttention.

    Returns:
        `torch.Tensor`: float32 logits in the order of `step_positions[step_mask]`. The shape is (number of steps, 2)
        as (good, bad) for `"lm"` and heads with two classes, and (number of steps, 1) for heads with one logit.
    """
    if rows is None:
        rows = torch.arange(len(input_ids), device=input_ids.device)
    if step_index is None:
        step_index = step_mask.flatten().nonzero().squeeze(1)
    at_steps = (rows[:, None].expand_as(step_positions).flatten()[step_index], step_positions.flatten()[step_index])
    network = unwrapped if unwrapped is not None else model
    if is_causal(network):
        attention_mask = None
    inputs = {
        "input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, **(attention_kwargs or {})
    }  # fmt: skip
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    if head not in ("lm", "token", "token_mlp"):
        raise ValueError(
            f"step_logits: got head={head!r}, expected 'lm', 'token' or 'token_mlp'. Use StepScorer for other heads."
        )
    with known_packing(position_ids is not None):
        if head != "lm":
            return model(**inputs).logits[at_steps].float().flip(-1)  # the second of two classes is "good"
        with narrowed_head(network.get_output_embeddings(), at_steps, [token_ids.good, token_ids.bad]):
            return model(**inputs).logits.float()


@contextmanager
def narrowed_head(
    language_head: nn.Module, at: tuple[Tensor, Tensor], token_ids: list[int] | None = None
) -> Iterator[None]:
    """Inside this context the head computes logits only at the positions `at`, and only of `token_ids` if they are
    not `None`. Other threads that enter with the same head wait."""
    with _locks.setdefault(language_head, RLock()):
        own_forward = language_head.forward
        had_forward = "forward" in vars(language_head)  # accelerate's hooks set it on the instance

        def forward(hidden: Tensor) -> Tensor:
            hidden = hidden[at]
            if type(language_head) is not nn.Linear or had_forward:
                # LoRA on the head, quantised or offloaded weights: only the head's own forward is right.
                logits = own_forward(hidden)
                return logits if token_ids is None else logits[:, _on_device(token_ids, logits.device)]
            weight, bias = language_head.weight, language_head.bias
            with torch.autocast(hidden.device.type, enabled=False):
                if token_ids is None:  # autocast would round the logits of float32 weights
                    return own_forward(hidden.to(weight.dtype))
                rows = _on_device(token_ids, weight.device)
                return nn.functional.linear(
                    hidden.float(), weight[rows].float(), None if bias is None else bias[rows].float()
                )

        language_head.forward = forward
        try:
            yield
        finally:
            if had_forward:
                language_head.forward = own_forward
            else:
                del language_head.forward


def _on_device(values: list[int], device: torch.device) -> Tensor:
    """A tensor of integers that is filled on the device, because the device would wait for a copy from the host."""
    return torch.stack([torch.full((), value, device=device) for value in values])
