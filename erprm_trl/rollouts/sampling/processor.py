"""Chooses the dtype and the number of threads of a policy that samples on a CPU."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.adapters import adapter_config, base_of_adapter
from ...io.paths import local_path, path_in_package
from ...io.processor import computes_bfloat16


logger = logging.getLogger(__name__)

# Smallest hidden size from which bfloat16 is chosen. Products of small matrices are not faster.
LEAST_HIDDEN_SIZE = 512
CGROUP = Path("/sys/fs/cgroup")


def default_dtype(settings: Mapping[str, Any]) -> str | None:
    """
    Chooses the dtype of a policy for a new collection. The policy of a float32 checkpoint samples in bfloat16 if it
    runs on a processor with instructions for this dtype, and if it is large enough to become faster.

    Args:
        settings (`Mapping[str, Any]`):
            See [`load_sampler`]. Their `dtype` is not set.

    Returns:
        `str` or `None`: `"bfloat16"`, or `None` for the default of the sampler.
    """
    import torch
    from transformers import AutoConfig

    init_kwargs = settings.get("model_init_kwargs") or {}
    if settings.get("backend", "transformers") != "transformers" or torch.accelerator.is_available():
        return None
    if {"dtype", "torch_dtype", "quantization_config"} & init_kwargs.keys() or not computes_bfloat16():
        return None
    path = local_path(path_in_package(settings["model_name_or_path"]))
    named = {name: init_kwargs[name] for name in ("revision", "trust_remote_code") if name in init_kwargs}
    try:
        if (adapter := adapter_config(path, named.get("revision"))) is not None:
            path, named = base_of_adapter(path, adapter), {}
        config = AutoConfig.from_pretrained(path, **{"trust_remote_code": False, **named})
    except (OSError, ValueError):  # loading the model raises a better error
        return None
    is_large = config.get_text_config().hidden_size >= LEAST_HIDDEN_SIZE
    if config.dtype != torch.float32 or not is_large or getattr(config, "quantization_config", None):
        return None
    logger.info(
        "%s: its weights are float32, and this processor computes faster in bfloat16, so it samples in bfloat16. Set "
        "dtype='float32' to sample from the unrounded weights.",
        path,
    )
    return "bfloat16"


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (_cgroup("cpu.max"), _cgroup("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if quota > 0 and period > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def limit_threads() -> None:
    """Lowers the number of torch's threads to the cores that this process may use, shared by the processes on this
    machine. Threads without a core slow each other down. `OMP_NUM_THREADS` takes precedence."""
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    most = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if (threads := torch.get_num_threads()) > most:
        logger.info("Sampling with %d threads instead of %d, because no more cores are available.", most, threads)
        torch.set_num_threads(most)


def _cgroup(*names: str) -> tuple[int, int]:
    """The quota and the period of a container, from one file or two. (0, 0) without a limit."""
    try:
        quota, period = " ".join((CGROUP / name).read_text(encoding="ascii") for name in names).split()
        return int(quota), int(period)
    except (OSError, ValueError):  # "max" means no limit
        return 0, 0
