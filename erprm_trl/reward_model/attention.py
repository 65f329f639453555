"""Decides before a model runs whether its attention is causal, whether rows hold several texts, and whether they are
padded.

Otherwise transformers reads this from the values of masks and positions in every forward pass, and an accelerator
waits for the host each time.

Transformers has no argument for this. A prepared mask of shape (B, 1, T, T) would also leave the values unread, but
it rules out the fastest attention of rows without padding, and it is used for layers with a sliding window, too.
Another name for the attention with its own mask function would have to be set in the model's configuration, which
threads share. Therefore two functions of `transformers.masking_utils` are replaced in this process. The
replacements call the original functions unless the current thread is inside a context of this module. An
accelerator's threads that recompute layers in the backward pass get the masks of the forward pass.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils


_known = threading.local()
_originals: dict[str, Callable | None] = {}
_replacing = threading.Lock()


def is_causal(model: nn.Module) -> bool:
    """
    Whether no token attends to later tokens. Padding on the right then needs no attention mask, and without a mask
    PyTorch can use its fastest attention.

    Args:
        model (`torch.nn.Module`):
            A transformers or PEFT model. If its attention does not say whether it is causal, the result is `False`.
    """
    flags = [flag for module in model.modules() if isinstance(flag := getattr(module, "is_causal", None), bool)]
    if not flags or not all(flags):
        return False
    return getattr(model.config.get_text_config(), "is_causal", None) is not False


@contextmanager
def known_packing(is_packed: bool) -> Iterator[None]:
    """
    Inside this context, models that this thread runs without an attention mask do not read from their position ids
    whether rows hold several texts.

    Args:
        is_packed (`bool`):
            Whether rows may hold several texts, whose position ids restart.
    """
    with _saying("is_packed", is_packed):
        yield


@contextmanager
def known_padding() -> Iterator[None]:
    """
    Inside this context, models that this thread runs with an attention mask do not read from it whether it hides any
    token. Rows without padding then have the same results up to rounding, by an attention with a mask.
    """
    with _saying("is_padded", True):
        yield


@contextmanager
def _saying(name: str, value: bool) -> Iterator[None]:
    _replace_functions()
    before = getattr(_known, name, None)
    setattr(_known, name, value)
    try:
        yield
    finally:
        setattr(_known, name, before)


def _said(name: str) -> bool | None:
    # Compiled graphs do not depend on the values of masks and positions, and transformers does not read them.
    return None if torch.compiler.is_compiling() else getattr(_known, name, None)


def _replace_functions() -> None:
    """Replaces the functions of transformers once. Without a function, a later version of transformers only waits."""
    with _replacing:
        if _originals:
            return
        _originals["packing"] = getattr(masking_utils, "find_packed_sequence_indices", None)
        _originals["padding"] = getattr(masking_utils, "_ignore_causal_mask_sdpa", None)
        if _originals["packing"] is not None:
            masking_utils.find_packed_sequence_indices = _text_of_tokens
        if _originals["padding"] is not None:
            masking_utils._ignore_causal_mask_sdpa = _needs_no_mask


def _text_of_tokens(position_ids: Tensor) -> Tensor | None:
    """Number of the text that each token belongs to in its row, or `None` if each row is one text."""
    is_packed = _said("is_packed")
    if is_packed is None:
        return _originals["packing"](position_ids)
    if not is_packed:
        return None
    # A text begins where positions do not continue.
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1).cumsum(-1)


def _needs_no_mask(padding_mask: Tensor | None, *args: Any, **kwargs: Any) -> bool:
    """Whether `sdpa` can do without a mask."""
    if padding_mask is not None and _said("is_padded"):
        return False
    return _originals["padding"](padding_mask, *args, **kwargs)


def uses_flash_attention(model: nn.Module) -> bool:
    """Whether a model's attention is FlashAttention, which separates texts of different lengths without a mask."""
    return "flash" in (getattr(model.config.get_text_config(), "_attn_implementation", None) or "")
