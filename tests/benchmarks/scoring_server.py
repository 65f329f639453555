"""The overhead of HTTP: solutions per second of StepScorer in this process and of recipes/serve_scorer.py in another
process, on dial's base model, in alternation: `python tests/benchmarks/scoring_server.py`.

Only one side works at a time. glibc returns freed memory to the system, and how often it does so differs between
processes and threads. One scorer had 83,000 to 290,000 page faults per call here, and the ratio was 1.3. Therefore
both sides are set to keep freed memory.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__" and not KEEP_MEMORY.items() <= os.environ.items():  # glibc reads them when a process starts
    os.environ.update(KEEP_MEMORY)
    os.execv(sys.executable, [sys.executable, *sys.argv])

from transformers import AutoModelForCausalLM, AutoTokenizer

from erprm_trl import StepScorer, TransformersSampler
from erprm_trl.dial import BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.rollouts import Prompt


RECIPE = Path(__file__).parents[2] / "recipes" / "serve_scorer.py"


def sample_solutions(count: int, scorer: StepScorer) -> tuple[list[str], list[list[str]]]:
    """Questions and steps of sampled solutions, four per question."""
    questions = [row["question"] for row in make_questions(count // 4, seed=0)]
    sampler = TransformersSampler.from_pretrained(str(BASE_PATH), max_new_tokens=64, batch_size=256)
    sampled = sampler.sample([Prompt(question) for question in questions], 4, seed=0)
    return [question for question in questions for _ in range(4)], [
        scorer.split(completion.text) for completions in sampled for completion in completions
    ]


def start_server(folder: str, batch_size: int) -> tuple[subprocess.Popen, str]:
    """Starts a server in another process, and returns it with its address."""
    command = [sys.executable, RECIPE, "--reward_model", folder, "--port", "0", "--batch_size", str(batch_size)]
    log = Path(folder, "server.log")
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
    while not (address := re.search(r"running on (\S+)", log.read_text())):
        if server.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.1)
    return server, address[1]


def main():
    """Runs the turns, and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solutions", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch_size", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_pretrained(BASE_PATH).save_pretrained(folder)
        AutoTokenizer.from_pretrained(BASE_PATH).save_pretrained(folder)
        FORMAT.save(folder)
        local = StepScorer.from_pretrained(folder, batch_size=arguments.batch_size)
        questions, steps = sample_solutions(arguments.solutions, local)
        server, address = start_server(folder, arguments.batch_size)
        try:
            scorers = {"in this process": local, "over HTTP": StepScorer.from_pretrained(address)}
            seconds = {name: [] for name in scorers}
            scores = {name: scorer.score(questions, steps) for name, scorer in scorers.items()}  # warm-up
            for _ in range(arguments.turns):
                for name, scorer in scorers.items():
                    started = time.perf_counter()
                    scorer.score(questions, steps)
                    seconds[name].append(time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait()
    rates = {name: len(steps) / statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        low, _, high = statistics.quantiles([len(steps) / duration for duration in times], n=4)
        print(f"{name}: {rates[name]:.0f} solutions per second (quartiles {low:.0f} to {high:.0f}, n={len(times)})")
    same = scores["over HTTP"] == scores["in this process"]
    print(f"ratio {rates['over HTTP'] / rates['in this process']:.3f}; the same scores: {same}")


if __name__ == "__main__":
    main()
