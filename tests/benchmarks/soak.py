"""Checks that a long-running process does not leak: `nice python tests/benchmarks/soak.py --minutes 120`.

One process repeats a tiny cycle on dial: collect, train a reward model, RAFT and step PPO. After each cycle it records
memory, Python objects, open files, threads, children (grading workers), zombies, and the size of the output folder
after the last cycle is deleted. At the end it fits a line to each series, and prints whether it is flat. Memory is
measured in two ways: the memory from the system (`rss_mb`), and the used part of it (the C heap's used blocks
`heap_mb` on Linux, which hold weights and tensors, Arrow's memory, and Python's blocks). If only the first grows, the
allocator keeps freed memory. If another one grows, there is a leak.
"""

import argparse
import ctypes
import gc
import json
import logging
import os
import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import psutil
import pyarrow
from datasets import Dataset, disable_progress_bars
from transformers.utils import logging as transformers_logging

from erprm_trl import (
    RAFTConfig,
    RAFTTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    StepScorer,
    TransformersSampler,
    collect_rollouts,
    load_questions,
)
from erprm_trl.dial import ANSWER_PATTERN, BASE_PATH, SEPARATOR, make_questions
from erprm_trl.dial.experiments.chain import DialChain
from erprm_trl.dial.experiments.policies import CPU_QUIET
from erprm_trl.policy import prompt_dataset


GRADING = {"grading": "math", "answer_pattern": ANSWER_PATTERN}  # in worker processes
PERCENT_AN_HOUR = 1.0  # smaller slopes count as flat
BLOCKS = 24  # successive samples are correlated, so intervals use the means of this number of blocks


def collect(folder: Path, seed: int):
    """Collects 24 questions × 2 solutions × 4 continuations of every prefix."""
    return collect_rollouts(
        load_questions(make_questions(24, seed)),
        TransformersSampler.from_pretrained(BASE_PATH, max_new_tokens=64, batch_size=256),
        folder / "rollouts",
        num_solutions=2,
        num_continuations=4,
        splitter=SEPARATOR,
        seed=seed,
        chunk_size=8,
        show_progress=False,
        **GRADING,
    )


def train_raft(reward_model: StepScorer, folder: Path, seed: int) -> None:
    """Trains two rounds on 24 questions × 4 solutions, each with an evaluation and a checkpoint."""
    args = RAFTConfig(
        str(folder / "raft"),
        num_rounds=2,
        questions_per_round=24,
        num_generations=4,
        num_generations_eval=1,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        max_completion_length=64,
        seed=seed,
        **GRADING,
        **CPU_QUIET,
    )
    rows = make_questions(48, seed)
    trainer = RAFTTrainer(BASE_PATH, reward_model, args, Dataset.from_list(rows), Dataset.from_list(rows[:8]))
    trainer.train()
    trainer.save_model()


def train_step_ppo(reward_model: str, folder: Path, seed: int) -> None:
    """Trains three updates of 32 completions with graded answers, and saves a checkpoint at the end."""
    args = StepPPOConfig(
        str(folder / "step-ppo"),
        max_steps=3,
        per_device_train_batch_size=32,
        num_generations=4,
        max_completion_length=64,
        logging_steps=1,
        seed=seed,
        **GRADING,
        **{**CPU_QUIET, "save_strategy": "steps", "save_steps": 3},
    )
    dataset = prompt_dataset(load_questions(make_questions(64, seed)), answers=True)
    trainer = StepPPOTrainer(BASE_PATH, reward_model, args, dataset)
    trainer.train()
    trainer.save_model()


def run_cycle(folder: Path, seed: int) -> None:
    """Runs the whole chain once, with the reward model as an object and as a folder."""
    scorer = DialChain(str(folder), max_steps=5, seed=seed).train(collect(folder, seed), eta=2.0)
    train_raft(scorer, folder, seed)
    train_step_ppo(str(folder / "erprm-eta-2"), folder, seed)


class HeapFigures(ctypes.Structure):
    """glibc's `struct mallinfo2`, with sums over all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def heap_in_use() -> dict[str, float]:
    """Megabytes of used blocks, including separately mapped ones. Empty if the C library does not report them."""
    figures = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if figures is None:
        return {}
    figures.restype = HeapFigures
    info = figures()
    return {"heap_mb": (info.uordblks + info.hblkhd) / 1e6}


def held(output_dir: Path) -> dict[str, float]:
    """The resources that this process holds now."""
    gc.collect()
    process = psutil.Process()
    children = process.children(recursive=True)
    zombies = [child for child in children if child.status() == psutil.STATUS_ZOMBIE]
    return {
        "rss_mb": process.memory_info().rss / 1e6,
        **heap_in_use(),
        "arrow_mb": pyarrow.total_allocated_bytes() / 1e6,
        "blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(children),
        "zombies": len(zombies),
        "disk_mb": sum(path.stat().st_size for path in output_dir.rglob("*") if path.is_file()) / 1e6,
    }


def trend(hours: list[float], values: list[float]) -> dict[str, float | bool]:
    """The slope per hour with its 95% interval, from means over blocks of consecutive samples. It is flat if the
    interval includes 0, or if the slope is below one percent of the mean."""
    size = max(1, -(-len(values) // BLOCKS))
    starts = range(0, len(values) - size + 1, size)
    x, y = ([statistics.fmean(of[start : start + size]) for start in starts] for of in (hours, values))
    slope, start = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    residual = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    half = 2.1 * (residual / max(1, len(x) - 2) / sum((a - middle) ** 2 for a in x)) ** 0.5
    mean = statistics.fmean(values)
    percent = 100 * slope / mean if mean else float(slope > 0)
    flat = slope - half <= 0 or percent < PERCENT_AN_HOUR
    return {"mean": mean, "slope": slope, "low": slope - half, "high": slope + half, "percent": percent, "flat": flat}


def report(samples: list[dict[str, float]], warm_up: float) -> dict[str, dict]:
    """Prints a line for each resource, and returns the trends."""
    last = samples[-1]["hours"]
    kept = [sample for sample in samples if sample["hours"] >= warm_up * last]
    if len(kept) < 3:
        raise SystemExit(f"{len(samples)} cycles, {len(kept)} after the warm-up: too few. Raise --minutes.")
    hours = [sample["hours"] for sample in kept]
    print(f"\n{len(samples)} cycles in {last:.2f} hours, lines over the last {len(kept)}, slopes per hour")
    trends = {}
    for name in [key for key in kept[0] if key not in ("cycle", "hours", "seconds")]:
        fitted = trends[name] = trend(hours, [sample[name] for sample in kept])
        print(
            f"{name:<12}{fitted['mean']:12.1f}{fitted['slope']:+12.3f}  [{fitted['low']:+.3f}, {fitted['high']:+.3f}]"
            f"{fitted['percent']:+9.2f}%  {'flat' if fitted['flat'] else 'GROWS'}"
        )
    return trends


def main() -> None:
    """Runs cycles until the time is over, and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--warm_up", type=float, default=0.2, help="Share of the time before the fitted part.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/soak"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("erprm_trl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    work = options.output_dir / "work"
    shutil.rmtree(work, ignore_errors=True)
    samples: list[dict[str, float]] = []
    report_file = options.output_dir / "soak.json"
    started = time.monotonic()
    while time.monotonic() - started < 60 * options.minutes:
        began = time.monotonic()
        cycle = len(samples)
        run_cycle(work / f"cycle-{cycle}", cycle)
        shutil.rmtree(work / f"cycle-{cycle - 1}", ignore_errors=True)
        now = time.monotonic()
        sample = {"cycle": cycle, "hours": (now - started) / 3600, "seconds": now - began, **held(work)}
        samples.append(sample)
        print("  ".join(f"{name} {value:.6g}" for name, value in sample.items()), flush=True)
        report_file.write_text(json.dumps({"samples": samples}))
    trends = report(samples, options.warm_up)
    report_file.write_text(json.dumps({"samples": samples, "trends": trends}, indent=1))


if __name__ == "__main__":
    main()
