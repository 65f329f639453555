"""Time that the sampler of a collection waits for a slow grader, with and without overlap:
`python tests/benchmarks/collection_overlap.py`.

The dial policy is collected with the grading function of `slow_grading.py`. Chunks are graded before the next is
sampled, or while it is sampled, in alternation. Both write the same bytes, which is checked.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import slow_grading
import torch
from intervals import interval

from erprm_trl import TransformersSampler, collect_rollouts, dial
from erprm_trl.rollouts import Question, collect


def run(sampler: TransformersSampler, questions: list[Question], folder: str, overlap: bool) -> dict:
    """Collects, and returns the speed and the bytes of the rows."""
    collect._may_overlap = lambda grader, policies: overlap
    started = time.perf_counter()
    data = collect_rollouts(
        questions,
        sampler,
        folder,
        num_continuations=8,
        splitter=dial.SEPARATOR,
        grading="slow_grading:slow",
        chunk_size=4,
        show_progress=False,
    )
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "idle": data.manifest["summary"]["speed"]["sampler_idle_share"],
        "rows": Path(folder, "rollouts-00000.jsonl").read_bytes(),
    }


def main() -> dict:
    """Prints both times and idle shares, and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--milliseconds", type=float, default=4.0, help="Time that the grader takes per answer.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[slow_grading.MILLISECONDS] = str(options.milliseconds)
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=256)
    questions = [Question(**row) for row in dial.make_questions(options.questions, seed=0)]
    results = {"serial": [], "overlapped": []}
    for pair in range(options.pairs + 1):  # the first pair is a warm-up
        with tempfile.TemporaryDirectory() as folder:
            pairs = {name: run(sampler, questions, f"{folder}/{name}", name == "overlapped") for name in results}
        assert pairs["serial"].pop("rows") == pairs["overlapped"].pop("rows")
        for name, result in pairs.items():
            if pair:
                results[name].append(result)
    for name, runs in results.items():
        seconds, idle = (statistics.median(result[key] for result in runs) for key in ("seconds", "idle"))
        print(f"{name:12}{seconds:6.1f} s, sampler idle for {idle:.1%} of the time (medians)")
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(results["serial"], results["overlapped"], strict=True)]
    idle = [a["idle"] - b["idle"] for a, b in zip(results["serial"], results["overlapped"], strict=True)]
    for what, values in (("serial / overlapped", ratios), ("idle share, difference", idle)):
        mean, width = interval(values)
        print(f"{what}: {mean:.2f} ± {width:.2f} ({options.pairs} pairs)")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2))
    return results


if __name__ == "__main__":
    main()
