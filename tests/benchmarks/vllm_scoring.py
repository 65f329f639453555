"""Solutions per second of the local scorer and of an offline vLLM engine, in alternation, with the largest difference
of their scores: `.venv-vllm/bin/python tests/benchmarks/vllm_scoring.py`.

The reward model is dial's base model, or `--reward_model`. The solutions are sampled from dial's base model, or read
from `--solutions_file`, a `.jsonl` file with rows of `question` and `steps`. Only one side works at a time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path


# The engine's process reads them.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_CI_ENV="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from erprm_trl import StepScorer, TransformersSampler
from erprm_trl.dial import BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.reward_model.scoring import VLLMBackend
from erprm_trl.rollouts import Prompt


def save_base(folder: str) -> str:
    """Saves dial's base model as a reward model."""
    AutoModelForCausalLM.from_pretrained(BASE_PATH).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE_PATH).save_pretrained(folder)
    FORMAT.save(folder)
    return folder


def sample_solutions(count: int) -> tuple[list[str], list[list[str]]]:
    """Questions and steps of sampled solutions, four per question."""
    questions = [row["question"] for row in make_questions(count // 4, seed=0)]
    sampler = TransformersSampler.from_pretrained(str(BASE_PATH), max_new_tokens=64, batch_size=256)
    sampled = sampler.sample([Prompt(question) for question in questions], 4, seed=0)
    texts = [completion.text for completions in sampled for completion in completions]
    steps = [[step.strip() for step in text.split(FORMAT.separator) if step.strip()] for text in texts]
    return [question for question in questions for _ in range(4)], steps


def read_solutions(path: str, count: int) -> tuple[list[str], list[list[str]]]:
    """Questions and steps of the first rows of a file."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
    return [row["question"] for row in rows], [row["steps"] for row in rows]


def main():
    """Runs the turns, and prints the medians, their ratio and the largest difference of two scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward_model")
    parser.add_argument("--solutions_file")
    parser.add_argument("--solutions", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max_model_len", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if arguments.solutions_file:
        questions, steps = read_solutions(arguments.solutions_file, arguments.solutions)
    else:
        questions, steps = sample_solutions(arguments.solutions)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.reward_model or save_base(str(Path(folder, "base")))
        local = StepScorer.from_pretrained(path, dtype=arguments.dtype, batch_size=arguments.batch_size, device="cpu")
        limits = {} if arguments.max_model_len is None else {"max_model_len": arguments.max_model_len}
        backend = VLLMBackend(path, dtype=arguments.dtype, engine_kwargs=limits)
    scorers = {"local": local, "vLLM": StepScorer.from_backend(backend)}
    scores = {name: scorer.score(questions, steps) for name, scorer in scorers.items()}  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(arguments.turns):
        for name, scorer in scorers.items():
            started = time.perf_counter()
            scorer.score(questions, steps)
            seconds[name].append(time.perf_counter() - started)
    backend.close()
    rates = {name: len(steps) / statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        low, _, high = statistics.quantiles([len(steps) / duration for duration in times], n=4)
        print(f"{name}: {rates[name]:.2f} solutions per second (quartiles {low:.2f} to {high:.2f}, n={len(times)})")
    pairs = zip(sum(scores["local"], []), sum(scores["vLLM"], []), strict=True)
    differences = sorted(abs(score - other) for score, other in pairs)
    print(
        f"ratio {rates['vLLM'] / rates['local']:.3f}; differences of {len(differences)} step scores: "
        f"median {statistics.median(differences):.2g}, largest {differences[-1]:.2g}"
    )


if __name__ == "__main__":
    main()
