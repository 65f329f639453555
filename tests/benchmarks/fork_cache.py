"""Compares three ways to process a prefix for all its continuations: a prefill per continuation, one prefill with
copied keys and values, and one shared prefill: `python tests/benchmarks/fork_cache.py`.

Each way samples eight continuations of each prefix of 100 dial solutions, five times, in alternation. The benchmark
prints the ratios of the medians, and checks that the samples are the same.
"""

import os
import time


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from statistics import median

import torch

from erprm_trl import TransformersSampler, dial
from erprm_trl.rollouts import Prompt, split_steps


def main():
    """Prints completions per second of each way and their ratios."""
    torch.set_num_threads(1)
    samplers = {
        way: TransformersSampler.from_pretrained(
            dial.BASE_PATH, max_new_tokens=64, batch_size=256, fork_cache=way != "prefilled each time"
        )
        for way in ("prefilled each time", "copied", "shared")
    }
    samplers["copied"]._shares = False
    questions = [row["question"] for row in dial.make_questions(100, seed=0)]
    solutions = samplers["shared"].sample([Prompt(question) for question in questions], 1, seed=0)
    prompts = []
    for question, (solution,) in zip(questions, solutions, strict=True):
        steps = split_steps(solution.text, dial.SEPARATOR)
        prompts += [Prompt(question, "".join(steps[:length])) for length in range(1, len(steps))]
    seconds, samples = {way: [] for way in samplers}, {}
    for _ in range(5):
        for way, sampler in samplers.items():
            started = time.perf_counter()
            samples[way] = sampler.sample(prompts, 8, seed=1)
            seconds[way].append(time.perf_counter() - started)
    assert samples["prefilled each time"] == samples["copied"] == samples["shared"]
    print(f"{len(prompts)} prefixes x 8, identical samples")
    rates = {way: 8 * len(prompts) / median(times) for way, times in seconds.items()}
    for way, rate in rates.items():
        print(f"{way:20}{rate:6.0f} completions per second, {rate / rates['prefilled each time']:.2f}x")


if __name__ == "__main__":
    main()
