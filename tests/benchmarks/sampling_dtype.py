"""Speed of sampling on a CPU by the dtype of the policy's weights:
`python tests/benchmarks/sampling_dtype.py --model FOLDER_OR_ID --questions gsm8k_test.jsonl`.

The same model in float32 and in bfloat16 samples the same questions in alternation, with one thread. The benchmark
prints tokens per second of processor time, so that it can run next to other programs, and the ratio of each pair.
"""

import argparse
import json
import os
import statistics
import time


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval

from erprm_trl import TransformersSampler, load_questions
from erprm_trl.rollouts import Prompt


def tokens_per_second(sampler: TransformersSampler, prompts: list[Prompt], seed: int) -> float:
    """Speed of one batch."""
    started = time.process_time()
    completions = sampler.sample(prompts, 1, seed)
    return sum(completion.num_tokens for (completion,) in completions) / (time.process_time() - started)


def main() -> dict:
    """Times both dtypes alternately, for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", required=True, help="Hub id or file.")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    questions = load_questions(options.questions, max_questions=max(options.batch_sizes))
    samplers = {
        dtype: TransformersSampler.from_pretrained(
            options.model, model_init_kwargs={"dtype": dtype}, max_new_tokens=options.max_new_tokens
        )
        for dtype in ("float32", "bfloat16")
    }
    for sampler in samplers.values():  # a warm-up
        sampler.sample([Prompt(questions[0].question)], 1, seed=0)
    results = []
    for batch_size in options.batch_sizes:
        prompts = [Prompt(question.question) for question in questions[:batch_size]]
        rates: dict[str, list[float]] = {dtype: [] for dtype in samplers}
        for pair in range(options.pairs):
            for dtype, sampler in samplers.items():
                sampler.batch_size = batch_size
                rates[dtype].append(tokens_per_second(sampler, prompts, seed=pair))
        ratios = [half / full for half, full in zip(rates["bfloat16"], rates["float32"], strict=True)]
        mean, width = interval(ratios)
        medians = {dtype: statistics.median(values) for dtype, values in rates.items()}
        print(
            f"batch {batch_size}: float32 {medians['float32']:.1f}, bfloat16 {medians['bfloat16']:.1f} tokens per "
            f"processor second (medians). bfloat16 / float32: {mean:.2f} ± {width:.2f} ({options.pairs} pairs)",
            flush=True,
        )
        results.append({"batch_size": batch_size, "tokens_per_second": rates, "ratios": ratios})
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)
    return {"results": results}


if __name__ == "__main__":
    main()
