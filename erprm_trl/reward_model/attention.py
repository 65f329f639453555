"""Decides before a model runs whether its attention is causal, and whether rows hold several texts.

Otherwise transformers reads this from the values of masks and positions in every forward pass, and an accelerator
waits for the host each time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import masking_utils


_known = threading.local()
_read_packing = getattr(masking_utils, "find_packed_sequence_indices", None)


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
    if _read_packing is not None:
        masking_utils.find_packed_sequence_indices = _packing
    before = getattr(_known, "is_packed", None)
    _known.is_packed = is_packed
    try:
        yield
    finally:
        _known.is_packed = before


def _packing(position_ids: Tensor) -> Tensor | None:
    """Number of the text that each token belongs to in its row, or `None` if each row is one text."""
    is_packed = None if torch.compiler.is_compiling() else getattr(_known, "is_packed", None)
    if is_packed is None:
        return _read_packing(position_ids)
    if not is_packed:
        return None
    # A text begins where positions do not continue.
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1).cumsum(-1)
