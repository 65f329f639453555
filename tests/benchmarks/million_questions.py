"""Memory of a collection against its number of questions: `python tests/benchmarks/million_questions.py`.

A million questions are streamed from a file through `collect_rollouts` with a sampler and a grader that take no time,
then summarised, opened again, read and labelled. At every tenth, the benchmark prints the process' memory: its own
(anonymous) pages, and pages of mapped files, which the system can free at any time.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in megabytes: its own pages, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[key].split()[0]) / 1e3 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


class Watched:
    """Records the memory after each tenth of the work."""

    def __init__(self, total: int):
        self.total, self.done, self.tenths = total, 0, 0
        self.started = time.monotonic()
        self.points: list[dict[str, float | str]] = []

    def add(self, count: int) -> None:
        self.done += count
        while self.tenths < 10 and 10 * self.done >= self.total * (self.tenths + 1):
            self.tenths += 1
            self.point(f"{10 * self.tenths}%")

    def point(self, name: str) -> None:
        memory = memory_mb()
        self.points.append({"at": name, **memory, "seconds": time.monotonic() - self.started})
        print(f"{name:<28}own {memory['own']:8.1f} MB   files {memory['files']:8.1f} MB   "
              f"{self.points[-1]['seconds']:7.0f} s", flush=True)  # fmt: skip


def main() -> None:
    """Writes the questions, collects and labels rollouts, and prints the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--chunk_size", type=int, default=256)
    parser.add_argument("--allocation", default="fixed", choices=["fixed", "adaptive"])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/million_questions"))
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    options.output_dir.mkdir(parents=True)
    os.environ["HF_DATASETS_CACHE"] = str(options.output_dir / "cache")  # the cache of the table of questions

    from erprm_trl import RolloutDataset, collect_rollouts, load_questions
    from erprm_trl.rollouts import Completion

    class FakeSampler:
        """Returns the same objects for every prompt: three steps and an answer."""

        settings = {"backend": "fake"}
        solution = Completion("first 12 + 30 = 42\nthen 42 - 2 = 40\nso it is\nanswer 40", True, 24)
        endings = [Completion(f"so it is\nanswer {answer}", True, 6) for answer in (40, 41)]

        def sample(self, prompts, num_samples, seed):
            if prompts[0].prefix:
                return [[self.endings[n % 2] for n in range(num_samples)] for _ in prompts]
            watched.add(len(prompts))
            return [[self.solution] * num_samples for _ in prompts]

    source = options.output_dir / "questions.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for index in range(options.questions):
            file.write(json.dumps({"question": f"What is {index} times two, less two?", "answer": "40"}) + "\n")
    watched = Watched(options.questions)
    watched.point("before")
    questions = load_questions(str(source))
    watched.point("questions checked")
    collect_rollouts(
        questions,
        FakeSampler(),
        options.output_dir / "rollouts",
        num_solutions=1,
        num_continuations=2,
        allocation=options.allocation,
        grading=lambda completion, answer: float(completion.endswith(answer)),
        chunk_size=options.chunk_size,
        show_progress=False,
    )
    watched.point("summarised")
    rollouts = RolloutDataset(options.output_dir / "rollouts")
    watched.point("opened again")
    num_steps = sum(len(row.steps) for row in rollouts.rows)
    watched.point("rows read")
    labels = rollouts.labels(2.0)
    watched.point("labelled")
    assert num_steps == 4 * options.questions == rollouts.manifest["summary"]["steps"]
    assert len(labels) == options.questions == len(rollouts)
    tenths = [point["own"] for point in watched.points if str(point["at"]).endswith("%")]
    size = sum(path.stat().st_size for path in (options.output_dir / "rollouts").iterdir()) / 1e6
    growth = tenths[-1] - tenths[0]
    print(f"{options.questions:,} questions, {size:,.0f} MB of rollouts: own memory from 10% to 100% {growth:+.1f} MB,"
          f" {1e6 * growth / (0.9 * options.questions):+.1f} bytes per question")  # fmt: skip
    report = {"questions": options.questions, "rollouts_mb": size, "points": watched.points}
    shutil.rmtree(options.output_dir)
    options.output_dir.mkdir()
    (options.output_dir / "million_questions.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
