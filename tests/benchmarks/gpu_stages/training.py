"""Training of reward models through `ERPRMTrainer` with random weights in the shapes of Llama 3.2 1B and Llama 3.1 8B,
with and without each option for speed: tokens per second, MFU, memory, and a profile of one update."""

import gc
import traceback
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import training_speed
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial
from erprm_trl.training.tracking.throughput import device_peak

from .measures import PeakMemory, ProfileUpdate, simple_mfu
from .records import Stage


class Shape(NamedTuple):
    """Sizes of a Llama."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    is_tied: bool


class Run(NamedTuple):
    """Runs of a model: its shape, the solutions per batch, the updates in a measured window, and whether with LoRA."""

    shape: Shape
    batch_size: int
    updates: int
    lora: bool


MEAN_TOKENS = 190  # of the solutions of training_speed.py
TINY = Shape(training_speed.VOCABULARY, 64, 176, 2, 4, 2, True)
RUNS = {
    "Llama 3.2 1B": Run(Shape(128_256, 2048, 8192, 16, 32, 8, True), 64, 6, False),
    "Llama 3.1 8B, LoRA": Run(Shape(128_256, 4096, 14_336, 32, 32, 8, False), 32, 4, True),
}
REHEARSED = {"tiny": Run(TINY, 4, 2, False), "tiny, LoRA": Run(TINY, 4, 2, True)}

PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
LIGER = PLAIN | {"use_liger_kernel": True}
PACKED = {"packing": True, "train_sampling_strategy": "random"}
# The defaults and the fastest first. Each other variant shows one option, the one that compiles last.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing, Liger, packing": LIGER | PACKED,
    "no checkpointing": PLAIN,
    "no checkpointing, Liger": LIGER,
    "no checkpointing, packing": PLAIN | PACKED,
    "no checkpointing, Liger, packing before the training": LIGER | {"packing": True, "packing_strategy": "bfd"},
    "no checkpointing, FlashAttention 2": PLAIN | {"attn_implementation": "flash_attention_2"},
    "no checkpointing, float32 weights": PLAIN | {"dtype": torch.float32},
    "no checkpointing, torch_compile": PLAIN | {"torch_compile": True},
}
PROFILED = ("defaults", "no checkpointing, Liger, packing")
NOT_WITH_LORA = ("no checkpointing, float32 weights", "no checkpointing, torch_compile")
NEEDS = {"use_liger_kernel": "liger_kernel", "attn_implementation": "flash_attn"}


def run(stage: Stage) -> None:
    """Runs the plain loop and all variants, and records each one when it is measured."""
    on_gpu = torch.cuda.is_available()
    runs = REHEARSED if stage.rehearse else RUNS
    loop = f"{'small' if stage.rehearse else '1.07B'}, plain loop"
    attempt(stage, loop, "no checkpointing, grouped by length", lambda: plain_loop(stage, on_gpu))
    for name, changes in VARIANTS.items():
        missing = [package for option, package in NEEDS.items() if option in changes and not find_spec(package)]
        for model, settings in runs.items():
            if settings.lora and name in NOT_WITH_LORA:
                continue
            if missing:
                stage.record("training", model=model, variant=name, note=f"{missing[0]} is not installed")
            elif stage.rehearse and "torch_compile" in changes:
                stage.record("training", model=model, variant=name, note="not rehearsed: a CPU compiles for minutes")
            else:
                attempt(
                    stage, model, name, partial(through_trainer, stage, settings, changes, name in PROFILED, on_gpu)
                )


def attempt(stage: Stage, model: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Measures and records a variant. An error is recorded, because the other variants are still worth their time."""
    try:
        result = measure()
    except torch.OutOfMemoryError:
        result = {"note": "out of memory"}
    except Exception as error:
        traceback.print_exc()
        result = {"note": f"{type(error).__name__}: {str(error)[:300]}"}
    stage.record("training", model=model, variant=name, **result)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plain_loop(stage: Stage, on_gpu: bool) -> dict[str, Any]:
    """The speed of a plain loop around the same loss, with Liger's kernels if they are installed."""
    options = Namespace(
        model="small" if stage.rehearse else "1b",
        dtype="bf16" if on_gpu else "float32",
        attention="sdpa",
        batch_size=4 if stage.rehearse else 64,
        batches=2 if stage.rehearse else 6,
        liger=bool(find_spec("liger_kernel")) and on_gpu,
        checkpointing=False,
        compile=False,
    )
    device = torch.device("cuda" if on_gpu else "cpu")
    measured = training_speed.measure(options, *training_speed.variants()[training_speed.OURS], device)
    peak = device_peak(device, torch.bfloat16 if on_gpu else torch.float32)
    return {
        "tokens_per_second": measured["tokens_per_second"],
        "mfu": measured["flops"] / peak.flops,
        "peak_tflops": peak.flops / 1e12,
        "memory_gib": measured["peak_gib"] if on_gpu else 0.0,
        "note": "with Liger" if options.liger else None,
    }


def build(shape: Shape, attention: str, dtype: torch.dtype, on_gpu: bool) -> LlamaForCausalLM:
    """A random model, built on the device in its dtype."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.is_tied, max_position_embeddings=2048, attn_implementation=attention, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if on_gpu else "cpu"):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def through_trainer(
    stage: Stage, settings: Run, changes: dict[str, Any], is_profiled: bool, on_gpu: bool
) -> dict[str, Any]:
    """Trains two windows of updates through `ERPRMTrainer`, and measures the second one."""
    options = dict(changes)
    attention, dtype = options.pop("attn_implementation", "sdpa"), options.pop("dtype", torch.bfloat16)
    updates, batch_size = settings.updates, settings.batch_size
    count = batch_size * (2 * updates + 1)
    if options.get("packing_strategy") == "bfd":  # about as many tokens in rows of 1,024
        batch_size = max(1, round(batch_size * MEAN_TOKENS / 1024))
    examples = training_speed.solutions(count, torch.Generator().manual_seed(1))
    data = Dataset.from_list([example | {"length": len(example["input_ids"])} for example in examples])
    args = ERPRMConfig(
        str(stage.work / "trainer"),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=1,
        max_steps=2 * updates + is_profiled,
        logging_steps=updates,
        separator=dial.SEPARATOR,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **options,
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    profile = ProfileUpdate(2 * updates + 1)
    with PeakMemory() as memory:
        trainer = ERPRMTrainer(
            build(settings.shape, attention, dtype if on_gpu else torch.float32, on_gpu),
            args,
            train_dataset=data,
            processing_class=dial.build_tokenizer(),
            peft_config=adapter if settings.lora else None,
            callbacks=[profile] if is_profiled else None,
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "perf/mfu" in entry][1]  # the first one is the warm-up
    speed = log["perf/tokens_per_second"]
    result = {
        "tokens_per_second": speed,
        "mfu": log["perf/mfu"],
        "peak_tflops": log["perf/peak_tflops"],
        "memory_gib": memory.gib,
        "loss": log["loss"],
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "profile": profile.summary,
    }
    if not settings.lora:
        lengths = torch.tensor(data["length"], dtype=torch.float64)
        mean_length = float(lengths.square().sum() / lengths.sum())
        peak = log["perf/peak_tflops"] * 1e12
        width = settings.shape.hidden
        result["simple_mfu"] = simple_mfu(speed, result["parameters"], settings.shape.layers, width, mean_length, peak)
    return result
