"""Saves the reference model of a run with `sync_ref_model=True` in its checkpoints.

Such a reference model follows the policy. TRL's checkpoints do not hold it, so that a resumed run would continue with
the initial reference model.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn


logger = logging.getLogger(__name__)

FILE = "synced_reference.safetensors"


@contextmanager
def whole_weights(model: nn.Module, accelerator: Accelerator, modify: bool = False) -> Iterator[None]:
    """
    Context in which each process has all weights of a model, also with ZeRO-3. All processes must enter it.

    Args:
        model (`torch.nn.Module`):
            The model.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the training run.
        modify (`bool`, *optional*, defaults to `False`):
            Whether the weights are changed inside the context. With ZeRO-3, all processes then get the weights of the
            first process.
    """
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0 if modify else None):
        yield


def save_synced_reference(trainer: Any, checkpoint: str | Path) -> None:
    """Saves the reference model of a trainer that synchronises it with the policy, and nothing for other trainers. All
    processes must call it."""
    model = _synced_reference(trainer)
    if model is None:
        return
    if trainer.is_fsdp_enabled:
        logger.warning(
            "%s has no reference model of sync_ref_model=True, because FSDP divides its weights. A run that is "
            "resumed from it starts with the initial reference model. Use DeepSpeed to save it.", checkpoint,
        )  # fmt: skip
        return
    with whole_weights(model, trainer.accelerator):
        if trainer.args.should_save:
            tensors = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
            save_file(tensors, Path(checkpoint, FILE), {"format": "pt"})


def load_synced_reference(trainer: Any, checkpoint: str | Path) -> None:
    """Loads what [`save_synced_reference`] has saved into the trainer's reference model. All processes must call it.
    Logs a warning if the checkpoint has no reference model."""
    model, file = _synced_reference(trainer), Path(checkpoint, FILE)
    if model is None:
        return
    if not file.is_file():
        logger.warning(
            "%s has no %s, because it was saved by an earlier version, with FSDP, with save_only_model=True, or "
            "without sync_ref_model. The run continues with the initial reference model.", checkpoint, FILE,
        )  # fmt: skip
        return
    saved = load_file(file)
    with whole_weights(model, trainer.accelerator, modify=True), torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(saved[name])


def _synced_reference(trainer: Any) -> nn.Module | None:
    model = getattr(trainer, "ref_model", None)
    if model is None or not getattr(trainer.args, "sync_ref_model", False):
        return None
    return trainer.accelerator.unwrap_model(model)
