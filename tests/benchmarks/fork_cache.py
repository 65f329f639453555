"""Does prefilling a prefix once and forking its cache pay? `python tests/benchmarks/fork_cache.py`: both ways, side by
side.

Eight continuations of each prefix of 100 dial solutions, alternately with and without forking, five times each; the
ratio of the medians, and that the samples are the same.
"""

import os
import time


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from statistics import median  # noqa: E402

import torch  # noqa: E402

from erprm_trl import TransformersSampler, dial  # noqa: E402
from erprm_trl.rollouts import Prompt, split_steps  # noqa: E402


def main():
    """Prints completions a second of both ways and their ratio."""
    torch.set_num_threads(1)
    samplers = {
        fork: TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=256, fork_cache=fork)
        for fork in (False, True)
    }
    questions = [row["question"] for row in dial.make_questions(100, seed=0)]
    solutions = samplers[True].sample([Prompt(question) for question in questions], 1, seed=0)
    prompts = []
    for question, (solution,) in zip(questions, solutions, strict=True):
        steps = split_steps(solution.text, dial.SEPARATOR)
        prompts += [Prompt(question, "".join(steps[:length])) for length in range(1, len(steps))]
    seconds, samples = {False: [], True: []}, {}
    for _ in range(5):
        for fork, sampler in samplers.items():
            started = time.perf_counter()
            samples[fork] = sampler.sample(prompts, 8, seed=1)
            seconds[fork].append(time.perf_counter() - started)
    assert samples[False] == samples[True]
    rates = {fork: 8 * len(prompts) / median(times) for fork, times in seconds.items()}
    print(f"{len(prompts)} prefixes x 8, identical samples")
    print(f"prefilled each time {rates[False]:.0f}/s, forked {rates[True]:.0f}/s: {rates[True] / rates[False]:.2f}x")


if __name__ == "__main__":
    main()
