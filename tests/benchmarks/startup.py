"""Startup times: `python tests/benchmarks/startup.py`.

Times `import erprm_trl` and `--help` of every recipe in separate processes, in alternation. It prints the best and the
median in seconds of wall-clock and of processor time (which is more reliable on a busy machine), and for comparison
the import times of the libraries.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
BARS = {"import erprm_trl": 0.5}  # maximum of the best time, in seconds
HELP_BAR = 1.0


def commands() -> dict[str, list[str]]:
    """The timed commands."""
    arguments = "from transformers import TrainingArguments"  # what a trainer's command imports to run
    imports = ["pass", "import erprm_trl", "import torch", arguments, "from trl import TrlParser"]
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    helps = {f"{path.name} --help": [str(path), "--help"] for path in recipes}
    helps |= {
        f"erprm{command} --help": ["-m", "erprm_trl", *command.split(), "--help"] for command in ("", " env", " train")
    }
    return {code: ["-c", code] for code in imports} | helps


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of wall-clock and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs the turns and prints the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="", help="Run only commands whose names contain this text.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    measured: dict[str, list[tuple[float, float]]] = {
        name: [] for name in commands() if name == "pass" or options.only in name
    }
    for turn in range(options.turns + 1):
        for name, times in measured.items():
            seconds = run(commands()[name])
            if turn:  # the first turn reads from the disk
                times.append(seconds)
    print(f"{'':<44}{'clock: best':>12}{'median':>9}{'processor: best':>18}{'median':>9}")
    for name, times in measured.items():
        clock, processor = zip(*times, strict=True)
        bar = BARS.get(name, HELP_BAR if name.endswith("--help") else None)
        verdict = "" if bar is None else f"   bar {bar:g}: {'met' if min(clock) <= bar else 'MISSED'}"
        print(f"{name:<44}{min(clock):12.2f}{statistics.median(clock):9.2f}"
              f"{min(processor):18.2f}{statistics.median(processor):9.2f}{verdict}")  # fmt: skip
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
