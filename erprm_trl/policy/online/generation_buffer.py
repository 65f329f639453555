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
    Saves this process's part of a generation that later updates still need. A generation with images is not saved.

    Args:
        folder (`str` or `Path`):
            Folder of the checkpoint.
        args ([`~trl.GRPOConfig`]):
            Configuration of the training run.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the training run.
        batches (`list[dict[str, Any]]`):
            The generation, split into the batches of the updates.
    """
    values = {f"{index}/{name}": value for index, batch in enumerate(batches) for name, value in batch.items()}
    if all(isinstance(value, Tensor) for value in values.values()):
        # Batches are views of one tensor, but safetensors needs separate memory for each.
        values = {name: value.detach().cpu().clone() for name, value in values.items()}
        save_file(values, _file(folder, accelerator), {"sizes": _sizes(args)})


def load_generation(folder: str | Path, args: GRPOConfig, accelerator: Accelerator) -> list[dict[str, Tensor]] | None:
    """
    Loads a generation that [`save_generation`] saved. All processes must call it together.

    Returns:
        `list[dict[str, Tensor]]` or `None`: the generation, or `None` if the checkpoint has no generation for this
        number of processes and these batch sizes. In that case a warning is logged, and the questions are sampled
        again.
    """
    file, sizes, batches = _file(folder, accelerator), None, [{} for _ in range(args.steps_per_generation)]
    if file.exists():
        with safe_open(file, "pt") as saved:
            sizes = saved.metadata()["sizes"]
            if sizes == _sizes(args):
                for name in saved.keys():  # noqa: SIM118  (the file is not a dictionary)
                    index, name_in_batch = name.split("/")
                    batches[int(index)][name_in_batch] = saved.get_tensor(name).to(accelerator.device)
    # All processes must sample together, so all load the generation, or none does.
    if bool(accelerator.gather(torch.tensor([sizes == _sizes(args)], device=accelerator.device)).all()):
        return batches
    logger.warning(
        "%s was saved between updates that share a generation, and has no %s with %s. The remaining updates of this "
        "generation sample its questions again.",
        folder, file.name, _sizes(args),
    )  # fmt: skip
    return None


def _sizes(args: GRPOConfig) -> str:
    """The sizes that must be equal for a resumed run to use a saved generation."""
    names = ("steps_per_generation", "num_iterations", "per_device_train_batch_size")
    return ", ".join(f"{name}={getattr(args, name)}" for name in names)


def _file(folder: str | Path, accelerator: Accelerator) -> Path:
    return Path(folder, f"generation_{accelerator.process_index}_of_{accelerator.num_processes}.safetensors")
