"""Logits at separators, and nowhere else: one function for training and scoring, any head, any wrapper.

The model runs through its own forward, so DDP, DeepSpeed, PEFT and the model's post-processing of logits work as ever;
only what its language-model head computes is narrowed for the call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .prm_format import FormatTokenIds


_locks = WeakKeyDictionary()  # a head is narrowed for one thread at a time


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
) -> Tensor:
    """
    Logits of all steps of a batch.

    Args:
        model (`torch.nn.Module`):
            The model, or what DDP or DeepSpeed made of it.
        head (`str`):
            `"lm"`, `"token"` or `"token_mlp"`.
        token_ids ([`FormatTokenIds`]):
            Ids of the good and the bad token, for `"lm"`.
        input_ids, attention_mask (`torch.Tensor`):
            (R, T), padded on the right. `attention_mask` is `None` where rows hold several solutions.
        step_positions, step_mask (`torch.Tensor`):
            (B, S): index of each step's separator in its row, and True at real steps.
        unwrapped (`torch.nn.Module`, *optional*):
            The transformers or PEFT model inside `model`. Defaults to `model`.
        rows (`torch.Tensor`, *optional*):
            (B,): the row of each solution. Defaults to a row each.
        position_ids (`torch.Tensor`, *optional*):
            (R, T): where rows hold several solutions, starting anew with each.

    Returns:
        `torch.Tensor`: float32, (number of steps, 2) as (good, bad) for `"lm"` and a head with two classes, (number of
        steps, 1) for one with one, in the order of `step_positions[step_mask]`. Memory does not depend on the
        vocabulary.
    """
    if rows is None:
        rows = torch.arange(len(input_ids), device=input_ids.device)
    at_steps = (rows[:, None].expand_as(step_positions)[step_mask], step_positions[step_mask])
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    if head not in ("lm", "token", "token_mlp"):
        raise ValueError(f"step_logits: got head={head!r}, expected 'lm', 'token' or 'token_mlp'.")
    if head != "lm":
        return model(**inputs).logits[at_steps].float().flip(-1)  # the second of two classes is "good"
    language_head = (unwrapped if unwrapped is not None else model).get_output_embeddings()
    with narrowed_head(language_head, at_steps, [token_ids.good, token_ids.bad]):
        return model(**inputs).logits.float()


@contextmanager
def narrowed_head(
    language_head: nn.Module, at: tuple[Tensor, Tensor], token_ids: list[int] | None = None
) -> Iterator[None]:
    """For the length of a call the head computes the columns `token_ids` (all, without them) at the positions `at`
    instead of the vocabulary everywhere. Another thread that narrows it waits."""
    with _locks.setdefault(language_head, RLock()):
        own_forward = language_head.forward
        had_forward = "forward" in vars(language_head)  # accelerate's hooks put one there

        def forward(hidden: Tensor) -> Tensor:
            hidden = hidden[at]
            if token_ids is None:
                return own_forward(hidden)
            if type(language_head) is not nn.Linear or had_forward:
                return own_forward(hidden)[:, token_ids]  # LoRA on the head, quantised or offloaded weights
            bias = language_head.bias
            with torch.autocast(hidden.device.type, enabled=False):
                return nn.functional.linear(
                    hidden.float(),
                    language_head.weight[token_ids].float(),
                    None if bias is None else bias[token_ids].float(),
                )

        language_head.forward = forward
        try:
            yield
        finally:
            if had_forward:
                language_head.forward = own_forward
            else:
                del language_head.forward
