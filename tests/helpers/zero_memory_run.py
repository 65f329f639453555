"""Measures the memory of one process of a DeepSpeed run, summed over the engine's tensors. A test launches it."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, TrainingArguments

from erprm_trl import dial


def storage_bytes(tensors):
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def main(folder, precision):
    bf16 = precision == "bfloat16"
    arguments = TrainingArguments(folder, use_cpu=True, bf16=bf16, report_to="none")
    assert arguments.device.type == "cpu"  # reading it starts the process group on the CPU
    accelerator = Accelerator()
    plugin = accelerator.state.deepspeed_plugin
    plugin.deepspeed_config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    model = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH, dtype=torch.float32)
    engine, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    ids = torch.arange(16)[None] + 5
    for micro_batch in range(3):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        if micro_batch < 2:
            engine.step()
    # One update is done, and the next update has half its gradients
    parameters, zero = list(engine.module.parameters()), engine.optimizer
    held = [*zero.averaged_gradients.values(), *getattr(zero, "all_grad_tensors", {}).values()]
    gradients = [gradient for group in held for gradient in group or [] if gradient is not None]
    gradients += [parameter.grad for parameter in parameters if parameter.grad is not None]
    masters = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    states = [value for state in zero.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    facts = {
        "world": accelerator.num_processes,
        "type": accelerator.distributed_type.value,
        "engine": type(zero).__name__,
        "stage": zero.zero_stage if hasattr(zero, "zero_stage") else engine.zero_optimization_stage(),
        "parameters": storage_bytes([getattr(parameter, "ds_tensor", parameter) for parameter in parameters]),
        "gradients": storage_bytes(gradients),
        "optimizer": storage_bytes([*masters, *states]),
        "reduce_bucket": engine._config.zero_config.reduce_bucket_size,
        "live_weights": engine._config.zero_config.max_live_parameters
        + engine._config.zero_config.prefetch_bucket_size,
        "overlap": bool(engine._config.zero_config.overlap_comm),
    }
    Path(folder, f"rank-{accelerator.process_index}.json").write_text(json.dumps(facts))
