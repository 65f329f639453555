"""Saves the current batch of generations in a checkpoint, so that a run resumed in the middle of a batch matches an
uninterrupted run. TRL's checkpoints do not hold it."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from trl import GRPOConfig


logger = logging.getLogger(__name__)


def save_generation(
    folder: str | Path, args: GRPOConfig, accelerator: Accelerator, batches: list[dict[str, Any]]
) -> None:
    """
    Saves this process's part of a generation from which updates are still to be made; not one with images.

    Args:
        folder (`str` or `Path`):
            The checkpoint's.
        args ([`~trl.GRPOConfig`]), accelerator ([`~accelerate.Accelerator`]):
            Of the training.
        batches (`list[dict[str, Any]]`):
            The generation, split as the updates take it.
    """
    values = {f"{index}/{name}": value for index, batch in enumerate(batches) for name, value in batch.items()}
    if all(isinstance(value, Tensor) for value in values.values()):
        # Batches are parts of one tensor, and the format wants each to have memory of its own.
        values = {name: value.detach().cpu().clone() for name, value in values.items()}
        save_file(values, _file(folder, accelerator), {"sizes": _sizes(args)})


def load_generation(folder: str | Path, args: GRPOConfig, accelerator: Accelerator) -> list[dict[str, Tensor]] | None:
    """
    Loads what [`save_generation`] saved; all processes call it together.

    Returns:
        `list[dict[str, Tensor]]` or `None`: the generation, or `None` where the checkpoint has none for this number of
        processes and these sizes of batches. That is logged: the questions are then sampled anew.
    """
    file, sizes, batches = _file(folder, accelerator), None, [{} for _ in range(args.steps_per_generation)]
    if file.exists():
        with safe_open(file, "pt") as saved:
            sizes = saved.metadata()["sizes"]
            if sizes == _sizes(args):
                for name in saved.keys():  # noqa: SIM118  (it is no dictionary)
                    index, name_in_batch = name.split("/")
                    batches[int(index)][name_in_batch] = saved.get_tensor(name).to(accelerator.device)
    # Those that sample do so together.
    if bool(accelerator.gather(torch.tensor([sizes == _sizes(args)], device=accelerator.device)).all()):
        return batches
    logger.warning(
        "%s: made between updates that share a generation, and without a %s of %s. The other updates of that "
        "generation sample its questions anew.",
        folder, file.name, _sizes(args),
    )  # fmt: skip
    return None


def _sizes(args: GRPOConfig) -> str:
    """What a generation's batches have to be for a run to go on with them."""
    names = ("steps_per_generation", "num_iterations", "per_device_train_batch_size")
    return ", ".join(f"{name}={getattr(args, name)}" for name in names)


def _file(folder: str | Path, accelerator: Accelerator) -> Path:
    return Path(folder, f"generation_{accelerator.process_index}_of_{accelerator.num_processes}.safetensors")
