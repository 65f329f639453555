"""Prepares a vLLM engine per process for sampling from a policy in training: its environment, and merged adapters.

Each process starts an engine of its own, which loads the policy of the round from disk. Engines are ended before the
training, so a round needs no other synchronisation of weights.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from transformers import Trainer

from ...training.checkpoints import flush_folder, writing


# Variables that a launcher sets for the processes of the training. An engine that reads them would wait for processes
# that belong to the training.
LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
# Arguments of `vllm.LLM` with which an engine uses several devices.
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@contextmanager
def engine_environment(accelerator: Accelerator) -> Iterator[None]:
    """Context in which a process of a training starts an engine. The engine's process inherits the environment, in
    which the launcher is hidden, and with several processes only the device of this process is visible."""
    before = dict(os.environ)
    for name in before:
        if name in LAUNCHER or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]
    # Processes without an accelerator have devices such as cpu:1.
    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
        from vllm.platforms import current_platform

        name = current_platform.device_control_env_var
        visible = before.get(name)
        devices = visible.split(",") if visible else None
        index = accelerator.device.index
        os.environ[name] = str(index) if devices is None else devices[index]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def save_merged(trainer: Trainer, path: Path) -> None:
    """Saves the policy with its adapter merged into the weights, and the tokenizer. The policy is not changed. All
    processes must call it."""
    if trainer.args.should_save:
        merged = copy.deepcopy(trainer.model).merge_and_unload()
        with writing(path):
            merged.save_pretrained(path)
            trainer.processing_class.save_pretrained(path)
            flush_folder(path)
    trainer.accelerator.wait_for_everyone()


def check_engine(trainer: Trainer) -> None:
    """
    Checks that a trainer's policy can be sampled with vLLM.

    Raises:
        `ValueError`: for an adapter that cannot be merged, and for engines on several devices in several processes.
    """
    args, model = trainer.args, trainer.model
    parallel = {name: (args.vllm_kwargs or {}).get(name, 1) for name in PARALLEL}
    if trainer.accelerator.num_processes > 1 and any(size != 1 for size in parallel.values()):
        raise ValueError(
            f"vllm_kwargs: got {parallel} with {trainer.accelerator.num_processes} processes, expected 1 for each, "
            "because each process has an engine on its own device. Remove them, or train in a single process."
        )
    if not hasattr(model, "peft_config"):
        return
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    base = model.get_base_model()
    reason = None
    if not hasattr(model, "merge_and_unload"):
        kinds = ", ".join(sorted(config.peft_type.value for config in model.peft_config.values()))
        reason = f"an adapter of PEFT's type {kinds}, which cannot be merged into the weights"
    elif getattr(base, "is_quantized", False):
        reason = "an adapter on a quantized model, whose merged weights would be other weights"
    elif plugin is not None and plugin.zero_stage == 3:
        reason = "an adapter with ZeRO-3, whose partitioned weights cannot be merged"
    if reason is not None:
        raise ValueError(
            f"use_vllm: got {reason}, expected full fine-tuning, or a LoRA adapter on whole weights, which is merged "
            "for the engine. Set use_vllm=False to sample with the model itself."
        )
