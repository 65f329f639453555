"""One table of the speeds relative to the usual implementations: `python tests/benchmarks/summary.py`.

Runs the benchmarks of training, collection, scoring and policy updates, each of which compares its sides in
alternation in one process, and writes `outputs/bench/summary.json`. Ratios are medians over turns, with the minimum
and the maximum.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


HERE = Path(__file__).parent
RUNS = {  # name: script, arguments, suffix of the ratios' names
    "training": ("training_speed.py", ["--batches", "6"], ""),
    "collection, dial": ("collection_speed.py", ["--model", "dial"], "_dial"),
    "collection, 20M parameters": ("collection_speed.py", ["--model", "20m", "--prefixes", "16", "--turns", "3"], ""),
    "scoring, dial": ("scoring_speed.py", ["--model", "dial"], "_dial"),
    "scoring, 20M parameters": (
        "scoring_speed.py",
        ["--model", "20m", "--num_solutions", "200", "--every", "4"],
        "",
    ),
    "policy update, dial": ("step_grpo_overhead.py", [], ""),
}


def main() -> None:
    """Runs the benchmarks, and prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--only", nargs="*", choices=RUNS, help="Runs to repeat; others keep their results.")
    options = parser.parse_args()
    path = options.output_dir / "summary.json"
    ratios = json.loads(path.read_text())["ratios"] if options.only and path.exists() else {}
    started = time.monotonic()
    for name, (script, arguments, ending) in RUNS.items():
        if options.only and name not in options.only:
            continue
        result_file = options.output_dir / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, HERE / script, *arguments, "--output", result_file], check=True)
        ratios |= {key + ending: value for key, value in json.loads(result_file.read_text())["ratios"].items()}
    versions = {package: version(package) for package in ("erprm_trl", "torch", "transformers", "trl")}
    machine = f"{_processor()}, {_cores()} cores, Python {platform.python_version()}"
    # The median of each ratio by its name, so that two runs can be compared, and its spread.
    summary = {name: value[0] for name, value in ratios.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**summary, "ratios": ratios, "machine": machine, "versions": versions}, indent=2))
    print(f"\n{machine}, {versions}")
    for name, (middle, low, high) in ratios.items():
        print(f"{name:<40}{middle:8.2f}  ({low:.2f} to {high:.2f})")
    print(f"{time.monotonic() - started:.0f} s. {path}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
