"""Reward-model training against what people use instead: `python tests/benchmarks/training_speed.py`.

All variants train the same model on the same solutions, in one process and in turns, and are counted in real tokens:
padded to 512 with float32 logits of the whole vocabulary everywhere (as the paper's script does), token classification
with dynamic padding in random order (as TRL's PRM trainer did up to 1.13), and ours: grouped by length, and packed.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForCausalLM

from erprm_trl.functional import soft_step_cross_entropy
from erprm_trl.reward_model.collator import DataCollatorForStepLabels
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits
from erprm_trl.tracking.throughput import ModelSize, Peak


VOCABULARY = 49_152
IDS = FormatTokenIds(1, 2, 3)
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "small": (256, 704, 4, 4, 4),
    "1b": (2048, 8192, 16, 32, 8),
}


def model_config(name, attention):
    hidden, intermediate, layers, heads, key_value = SHAPES[name]
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value, max_position_embeddings=2048,
        attn_implementation=attention, num_labels=1, pad_token_id=0,
    )  # fmt: skip


def solutions(count, generator):
    """Token ids of question and solution with a separator each ~30 tokens: lengths as GSM8K's, 60 to 512."""
    lengths = (torch.randn(count, generator=generator) * 0.42 + 5.15).exp().clamp(60, 512).int().tolist()
    return [
        {
            "input_ids": torch.randint(4, VOCABULARY, (length,), generator=generator).tolist(),
            "step_positions": list(range(length - 1, length // 3, -30))[::-1],
            "step_labels": torch.rand(len(range(length - 1, length // 3, -30)), generator=generator).tolist(),
        }
        for length in lengths
    ]


def batches(examples, size, grouped, collate):
    """In random order as given, or as group_by_length makes them: sorted within 50 batches."""
    if grouped:
        mega = 50 * size
        chunks = [examples[start : start + mega] for start in range(0, len(examples), mega)]
        examples = [one for chunk in chunks for one in sorted(chunk, key=lambda one: -len(one["input_ids"]))]
    return [collate(examples[start : start + size]) for start in range(0, len(examples) - size + 1, size)]


def to_512(collate):
    def padded(examples):
        batch = collate(examples)
        missing = 512 - batch["input_ids"].shape[1]
        for key in ("input_ids", "attention_mask"):
            batch[key] = torch.nn.functional.pad(batch[key], (0, missing))
        return batch

    return padded


def full_logits_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    log_probs = logits.float().log_softmax(-1)
    rows = batch["rows"][:, None].expand_as(batch["step_mask"])[batch["step_mask"]]
    at_steps = log_probs[rows, batch["step_positions"][batch["step_mask"]]]
    labels = batch["step_labels"][batch["step_mask"]]
    return -(labels * at_steps[:, IDS.good] + (1 - labels) * at_steps[:, IDS.bad]).mean()


def ours(head):
    def loss(model, batch):
        logits = step_logits(
            model, head, IDS, batch["input_ids"], batch.get("attention_mask"), batch["step_positions"],
            batch["step_mask"], rows=batch["rows"], position_ids=batch.get("position_ids"),
        )  # fmt: skip
        return soft_step_cross_entropy(logits, batch["step_labels"][batch["step_mask"]])

    return loss


def variants():
    """Name to (model class, loss, grouped, collator)."""
    padding, packing = DataCollatorForStepLabels(0), DataCollatorForStepLabels(0, packing=True)
    token = AutoModelForTokenClassification.from_config
    return {
        "padded to 512, full logits": (LlamaForCausalLM, full_logits_loss, False, to_512(padding)),
        "token classification": (token, ours("token"), False, padding),
        "ours, grouped": (LlamaForCausalLM, ours("lm"), True, padding),
        "ours, packed": (LlamaForCausalLM, ours("lm"), False, packing),
        "ours, grouped and packed": (LlamaForCausalLM, ours("lm"), True, packing),
    }


def measure(options, name, model_class, loss_of, grouped, collate, device):
    """Tokens a second of real text in each round, peak memory beyond the weights, and the FLOPs of a token."""
    torch.manual_seed(0)
    config = model_config(options.model, options.attention)
    with device:
        model = model_class(config).to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    model.train()
    if options.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    if options.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    examples = solutions(options.batch_size * options.batches, torch.Generator().manual_seed(1))
    prepared = batches(examples, options.batch_size, grouped, collate)
    weights = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    size = ModelSize.of(model)

    def epoch():
        start, tokens, flops = time.perf_counter(), 0, 0.0
        for batch in prepared:
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "autocast"):
                loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        lengths = torch.cat([batch["lengths"] for batch in prepared])
        tokens = int(lengths.sum())
        flops = size.training_flops(tokens, int(lengths.square().sum()), 0)
        seconds = time.perf_counter() - start
        return tokens / seconds, flops / seconds

    epoch()  # warm-up: kernels, compilation, the optimiser's state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = [epoch() for _ in range(options.rounds)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    processed = sum(batch["input_ids"].numel() for batch in prepared)
    result = {
        "name": name,
        "tokens_per_second": [tokens for tokens, _ in rounds],
        "tflops": statistics.median(flops for _, flops in rounds) / 1e12,
        "padding": 1 - sum(int(batch["lengths"].sum()) for batch in prepared) / processed,
        "activations_gib": (peak - weights) / 2**30,
        "peak_gib": peak / 2**30,
    }
    return result


def through_trainer(options, device, peak):
    """What `ERPRMTrainer` itself reports: its own loop, logging, clipping and metrics."""
    from datasets import Dataset

    from erprm_trl import ERPRMConfig, ERPRMTrainer, dial

    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(model_config(options.model, options.attention))
        model = model.to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    examples = solutions(options.batch_size * options.batches, torch.Generator().manual_seed(1))
    data = Dataset.from_list([one | {"length": len(one["input_ids"])} for one in examples])
    for packing in (False, True):
        args = ERPRMConfig(
            f"outputs/bench/trainer-{packing}", per_device_train_batch_size=options.batch_size, packing=packing,
            num_train_epochs=options.rounds, logging_steps=options.batches, separator="ки",
            gradient_checkpointing=options.checkpointing, use_liger_kernel=options.liger,
            bf16=options.dtype != "float32", torch_compile=options.compile, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=device.type == "cpu", optim="adamw_torch_fused",
        )  # fmt: skip
        trainer = ERPRMTrainer(model, args, train_dataset=data, processing_class=dial.build_tokenizer())
        trainer._tracking.throughput._peak = Peak(peak, measured=True)
        trainer.train()
        for entry in trainer.state.log_history:
            if "perf/mfu" in entry:
                print(
                    f"ERPRMTrainer, packing={packing}: {entry['perf/tokens_per_second']:,.0f} tokens/s, "
                    f"MFU {entry['perf/mfu']:.3f}"
                )


def matmul_peak(device, dtype):
    """FLOP/s of a large product of random matrices, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    del product
    return 2 * size**3 / best


def main():
    """Prints a table and, if asked, writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--dtype", choices=["float32", "bf16", "autocast"], default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--trainer", action="store_true", help="through ERPRMTrainer, nothing else")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_peak(device, torch.float32 if options.dtype == "float32" else torch.bfloat16)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {' '.join(sys.argv[1:])}; matrix product {peak / 1e12:.4g} TFLOP/s")
    if options.trainer:
        through_trainer(options, device, peak)
        return
    results = []
    for name, variant in variants().items():
        if options.only and name not in options.only:
            continue
        try:
            result = measure(options, name, *variant, device)
        except torch.OutOfMemoryError:
            print(f"{name:<28} out of memory")
            gc.collect()
            torch.cuda.empty_cache()
            continue
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        results.append(result | {"mfu": result["tflops"] * 1e12 / peak})
        rates = result["tokens_per_second"]
        print(
            f"{name:<28}{statistics.median(rates):>10,.0f} tokens/s ({min(rates):,.0f}-{max(rates):,.0f})"
            f"  x{statistics.median(rates) / statistics.median(results[0]['tokens_per_second']):<6.2f}"
            f" MFU {results[-1]['mfu']:.3f}  padding {result['padding']:.2f}"
            f"  activations {result['activations_gib']:.2f} GiB  peak {result['peak_gib']:.2f} GiB",
            flush=True,
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"where": where, "peak": peak, "results": results}, indent=2))


if __name__ == "__main__":
    main()
