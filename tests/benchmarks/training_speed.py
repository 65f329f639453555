"""Training speed of reward models, compared with the usual implementations: `python
tests/benchmarks/training_speed.py`.

All variants train the same model on the same solutions, in one process and in alternation, and are measured in real
tokens: padding to 512 with float32 logits of the whole vocabulary everywhere (like the paper's script), token
classification with dynamic padding in random order (like TRL's PRM trainer up to 1.13), and this package's training,
grouped by length and packed.

With `--rival PYTHON`, the trainers themselves are compared, each in a process of its own: `ERPRMTrainer`, and TRL
1.12's `PRMTrainer` in an environment that is made for it:

    python3 -m venv ../trl-1.12-venv
    ../trl-1.12-venv/bin/pip install torch==2.13.0 "trl==1.12.*" transformers==5.23.0
    python tests/benchmarks/training_speed.py --rival ../trl-1.12-venv/bin/python
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForCausalLM

from erprm_trl.functional import soft_step_cross_entropy
from erprm_trl.reward_model.collator import DataCollatorForStepLabels
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits
from erprm_trl.training.tracking.throughput import ModelSize, Peak


VOCABULARY = 49_152
IDS = FormatTokenIds(1, 2, 3)
OURS = "ours, grouped"
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "small": (256, 704, 4, 4, 4),
    "1b": (2048, 8192, 16, 32, 8),
}


def shape(name):
    """Arguments of the model's configuration."""
    hidden, intermediate, layers, heads, key_value = SHAPES[name]
    return {
        "tie_word_embeddings": name == "small",  # as in language models of this size
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_value,
        "max_position_embeddings": 2048, "pad_token_id": 0,
    }  # fmt: skip


def model_config(name, attention):
    return LlamaConfig(**shape(name), attn_implementation=attention, num_labels=1)


def solutions(count, generator):
    """Token ids of questions and solutions with a separator every ~30 tokens and GSM8K's lengths, 60 to 512."""
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
    """Batches in the unchanged random order, or sorted within 50 batches like group_by_length."""
    if grouped:
        mega = 50 * size
        chunks = [examples[start : start + mega] for start in range(0, len(examples), mega)]
        examples = [
            example for chunk in chunks for example in sorted(chunk, key=lambda example: -len(example["input_ids"]))
        ]
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
    """Returns (model class, loss, grouped, collator) by name."""
    padding, packing = DataCollatorForStepLabels(0), DataCollatorForStepLabels(0, packing=True)
    token = AutoModelForTokenClassification.from_config
    return {
        "padded to 512, full logits": (LlamaForCausalLM, full_logits_loss, False, to_512(padding)),
        "token classification": (token, ours("token"), False, padding),
        OURS: (LlamaForCausalLM, ours("lm"), True, padding),
        "ours, packed": (LlamaForCausalLM, ours("lm"), False, packing),
        "ours, grouped and packed": (LlamaForCausalLM, ours("lm"), True, packing),
    }


class PeakMemory:
    """Peak memory inside a `with` block, in bytes, of the device or, without one, of this process."""

    def __init__(self, device):
        self.device = device

    def held(self):
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # frees memory of earlier visits, which would hide the memory of this one
        self.peak, self.over = self.held(), threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def _look(self):
        while not self.over.wait(0.002):
            self.peak = max(self.peak, self.held())

    def __exit__(self, *error):
        self.over.set()
        self.watch.join()
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated()


def measure(options, model_class, loss_of, grouped, collate, device):
    """One visit: builds the model, warms up and trains an epoch. Returns tokens of real text and FLOPs per second, the
    share of padding, and the peak memory beyond the weights."""
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
    size = ModelSize.of(model)

    def epoch(epoch_batches):
        start = time.perf_counter()
        for batch in epoch_batches:
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "autocast"):
                loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with PeakMemory(device) as memory:
        weights = memory.held()
        # Warm-up: kernels, compilation, the optimizer's state, and on a GPU every shape once.
        epoch(prepared if device.type == "cuda" else prepared[:2])
        seconds = epoch(prepared)
    lengths = torch.cat([batch["lengths"] for batch in prepared])
    tokens = int(lengths.sum())
    return {
        "tokens_per_second": tokens / seconds,
        "flops": size.training_flops(tokens, int(lengths.square().sum()), 0) / seconds,
        "padding": 1 - tokens / sum(batch["input_ids"].numel() for batch in prepared),
        "memory_gib": (memory.peak - weights) / 2**30,
        "peak_gib": memory.peak / 2**30,
    }


def through_trainer(options, device, peak):
    """The speed that `ERPRMTrainer` reports, with its own loop, logging, clipping and metrics."""
    from datasets import Dataset

    from erprm_trl import ERPRMConfig, ERPRMTrainer, dial

    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(model_config(options.model, options.attention))
        model = model.to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    examples = solutions(options.batch_size * options.batches, torch.Generator().manual_seed(1))
    data = Dataset.from_list([example | {"length": len(example["input_ids"])} for example in examples])
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


RIVALS = {  # trainer of `trainer_visit.py`, and arguments that differ from its defaults
    "TRL 1.12 PRMTrainer": ("trl", {}),
    "padded script": ("padded", {}),
    "ERPRMTrainer": ("ours", {}),
    "ERPRMTrainer, packing": ("ours", {"packing": True, "train_sampling_strategy": "random"}),
    "ERPRMTrainer, packing, bfd": ("ours", {"packing": True, "packing_strategy": "bfd"}),
}


def visit(options, folder, trainer, arguments):
    """Trains in a process of its own and returns what `trainer_visit.py` measured."""
    from erprm_trl import dial

    python = sys.executable if trainer == "ours" else options.rival
    batch_size = options.batch_size
    if arguments.get("packing_strategy") == "bfd":  # about as many tokens in rows of 1,024
        batch_size = max(1, round(batch_size * 190 / 1024))
    output = folder / "visit.json"
    named = {
        "trainer": trainer, "tokenizer": dial.BASE_PATH, "data": folder / "data.jsonl", "output": output,
        "config": json.dumps(shape(options.model)), "arguments": json.dumps(arguments), "batch_size": batch_size,
        "max_steps": options.batches,
    }  # fmt: skip
    script = Path(__file__).with_name("trainer_visit.py")
    command = [python, script, *(part for name, value in named.items() for part in (f"--{name}", value))]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return json.loads(output.read_text())


def write_data(options, path):
    """Solutions with right and wrong steps, with the columns of both packages."""
    lines = []
    for example in solutions(options.batch_size * options.batches, torch.Generator().manual_seed(1)):
        labels = [-100] * len(example["input_ids"])
        for index, position in enumerate(example["step_positions"]):
            labels[position] = index % 2
        hard = {"step_labels": [float(labels[position]) for position in example["step_positions"]]}
        lines.append(json.dumps({**example, **hard, "labels": labels, "length": len(labels)}))
    path.write_text("\n".join(lines))


def against_rival(options):
    """Compares the trainers in alternation, and the losses of both packages in float32."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_data(options, folder / "data.jsonl")
        chosen = {name: of for name, of in RIVALS.items() if not options.only or name in options.only}
        visits = {name: [] for name in chosen}
        for _ in range(options.rounds):
            for name, (trainer, arguments) in chosen.items():
                visits[name].append(visit(options, folder, trainer, arguments))
                print(name, {key: value for key, value in visits[name][-1].items() if key != "losses"}, flush=True)
        exact = {"bf16": False, "train_sampling_strategy": "sequential", "max_steps": 5, "logging_steps": 1}
        losses = [
            visit(options, folder, trainer, {**exact, **more})["losses"]
            for trainer, more in (
                ("trl", {}),
                ("ours", {"head": "token"}),
                ("ours", {"head": "token", "packing": True}),
            )
        ]
    rivals = [name for name in list(RIVALS)[:2] if name in visits]
    print(f"{'':<28}{'tokens/s':>10}{'padding':>9}{'GiB':>7}   speed, then memory, relative to {' and '.join(rivals)}")
    for name, measured in visits.items():
        middle = {key: statistics.median(entry[key] for entry in measured) for key in measured[0] if key != "losses"}
        ratios = [
            middle_and_range(measured, visits[rival], key)
            for key in ("tokens_per_second", "memory_gib")
            for rival in rivals
        ]
        shown = "   ".join(f"{ratio:.2f} ({low:.2f} to {high:.2f})" for ratio, low, high in ratios)
        speed = f"{middle['tokens_per_second']:>10,.0f}{middle['padding']:>9.1%}"
        print(f"{name:<28}{speed}{middle['memory_gib']:>7.2f}   {shown}")
    rival, *own = torch.tensor(losses)
    gaps = ", ".join(f"{(rival - ours).abs().max().item():.1e}" for ours in own)
    print(f"Largest difference of a loss to TRL's, same order, float32: {gaps} (with packing)")


def middle_and_range(visits, others, key):
    """Median, minimum and maximum over turns of a ratio."""
    ratios = [visit[key] / other[key] for visit, other in zip(visits, others, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def matmul_peak(device, dtype):
    """FLOPs per second of a large product of random matrices, the best of five."""
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
    """Prints a table and, with `--output`, writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--dtype", choices=["float32", "bf16", "autocast"], default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--batches", type=int, help="12 by default, and 50 with --rival, because grouping by length needs many."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="Names of the variants to run.")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--trainer", action="store_true", help="Only measure ERPRMTrainer.")
    parser.add_argument("--rival", help="Python of an environment with TRL 1.12. Only compares the trainers.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.batches = options.batches or (50 if options.rival else 12)
    if options.rival:
        against_rival(options)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_peak(device, torch.float32 if options.dtype == "float32" else torch.bfloat16)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {' '.join(sys.argv[1:])}; matrix product {peak / 1e12:.4g} TFLOP/s")
    if options.trainer:
        through_trainer(options, device, peak)
        return
    chosen = {name: variant for name, variant in variants().items() if not options.only or name in options.only}
    visits = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, variant in chosen.items():
            try:
                visits[name].append(measure(options, *variant, device))
            except torch.OutOfMemoryError:
                print(f"{name:<28} out of memory")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    results = {name: summarize(measured, peak) for name, measured in visits.items() if measured}
    for name, result in results.items():
        low, high = result["spread"]
        print(
            f"{name:<28}{result['tokens_per_second']:>10,.0f} tokens/s ({low:,.0f}-{high:,.0f}) "
            f"MFU {result['mfu']:.3f}  padding {result['padding']:.2f}  "
            f"GiB beyond weights {result['memory_gib']:.2f}, peak {result['peak_gib']:.2f}"
        )
    ratios = compare(visits)
    for name, (middle, low, high) in ratios.items():
        print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f})")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"where": where, "peak": peak, "results": results, "ratios": ratios}
        options.output.write_text(json.dumps(report, indent=2))


def summarize(visits, peak):
    """Medians, the share of the peak FLOPs, and the slowest and fastest visit."""
    medians = {key: statistics.median(visit[key] for visit in visits) for key in visits[0]}
    rates = [visit["tokens_per_second"] for visit in visits]
    return medians | {"mfu": medians["flops"] / peak, "spread": (min(rates), max(rates))}


def compare(visits):
    """Median, minimum and maximum over turns of this package's speed (grouped by length) relative to the others."""
    padded, token, ours = (visits.get(name) for name in ("padded to 512, full logits", "token classification", OURS))
    pairs = {
        "train_vs_padded_full_logits": (ours, padded, "tokens_per_second"),
        "train_vs_token_classification": (ours, token, "tokens_per_second"),
        "train_memory_vs_padded_full_logits": (ours, padded, "memory_gib"),
    }
    ratios = {}
    for name, (left, right, key) in pairs.items():
        if left and right:
            each = [first[key] / second[key] for first, second in zip(left, right, strict=False)]
            ratios[name] = (statistics.median(each), min(each), max(each))
    return ratios


if __name__ == "__main__":
    main()
