"""Scoring speed: `StepScorer` compared with two usual implementations, one forward pass per step (i), and one padded
batch per question (ii), on 1,000 solutions of mixed lengths: `python tests/benchmarks/scoring_speed.py [--model 20m]`.

All three start from texts and must give the same scores. They alternate in one process. With `--every 20`, (i) scores
only every 20th solution, because it can take minutes. glibc is set to keep freed memory, so that page faults do not
disturb the timings.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path


KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}

if __name__ == "__main__" and not KEEP_MEMORY.items() <= os.environ.items():  # glibc reads them when a process starts
    os.environ.update(KEEP_MEMORY)
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from erprm_trl import PRMFormat, StepScorer, TransformersSampler
from erprm_trl.dial import BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.reward_model import EncodedSolution, encode_solution, encode_solutions
from erprm_trl.rollouts import Prompt


SAMPLES = 8  # per question


def dial_solutions(scorer: StepScorer, count: int) -> tuple[list[str], list[list[str]]]:
    """Solutions sampled from dial's base model."""
    questions = [row["question"] for row in make_questions(count // SAMPLES, seed=0)]
    sampler = TransformersSampler.from_pretrained(str(BASE_PATH), max_new_tokens=64, batch_size=256)
    sampled = sampler.sample([Prompt(question) for question in questions], SAMPLES, seed=0)
    steps = [scorer.split(completion.text) for completions in sampled for completion in completions]
    return [question for question in questions for _ in range(SAMPLES)], steps


def written_solutions(count: int) -> tuple[list[str], list[list[str]]]:
    """Random words of dial's vocabulary with the lengths of grade-school answers: questions of about 60 tokens, and 1
    to 14 steps of about 24 tokens."""
    generator = torch.Generator().manual_seed(0)

    def words(mean: float) -> str:
        count = int((torch.randn((), generator=generator) * 0.5 + torch.tensor(mean).log()).exp().clamp(2, 200))
        return " ".join(str(int(value)) for value in torch.randint(20, (count,), generator=generator))

    questions = [words(60) for _ in range(count // SAMPLES)]
    counts = (torch.randn(count, generator=generator) * 0.5 + 1.6).exp().clamp(1, 14).int().tolist()
    return [question for question in questions for _ in range(SAMPLES)], [
        [words(24) for _ in range(count)] for count in counts
    ]


def build(name: str, count: int, device: str, batching: dict):
    """The scorer and its solutions."""
    tokenizer = AutoTokenizer.from_pretrained(str(BASE_PATH))
    if name == "dial":
        scorer = StepScorer.from_pretrained(BASE_PATH, prm_format=FORMAT, device=device, **batching)
        return scorer, *dial_solutions(scorer, count)
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, max_position_embeddings=4096, pad_token_id=0, **sizes))
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗")
    scorer = StepScorer(model.to(device), tokenizer, prm_format, **batching)
    return scorer, *written_solutions(count)


@torch.no_grad()
def step_by_step(scorer: StepScorer, questions: list[str], steps: list[list[str]]) -> list[list[float]]:
    """(i) Scores the text up to each step separately."""
    verdicts = [scorer.token_ids.good, scorer.token_ids.bad]
    scores = []
    for question, solution in zip(questions, steps, strict=True):
        encoded = encode_solution(scorer.tokenizer, scorer.prm_format, question, solution)
        prefixes = [encoded.input_ids[: position + 1] for position in encoded.step_positions]
        inputs = [torch.tensor([prefix], device=scorer.model.device) for prefix in prefixes]
        scores.append([scorer.model(ids).logits[0, -1, verdicts].softmax(-1)[0].item() for ids in inputs])
    return scores


@torch.no_grad()
def question_by_question(scorer: StepScorer, questions: list[str], steps: list[list[str]]) -> list[list[float]]:
    """(ii) Scores the samples of one question at a time, padded to the longest."""
    verdicts, scores = [scorer.token_ids.good, scorer.token_ids.bad], []
    for start in range(0, len(steps), SAMPLES):
        rows = slice(start, start + SAMPLES)
        batch = encode_solutions(scorer.tokenizer, scorer.prm_format, questions[rows], steps[rows])
        longest = max(len(solution.input_ids) for solution in batch)
        ids = torch.tensor([solution.input_ids + [0] * (longest - len(solution.input_ids)) for solution in batch])
        mask = torch.tensor(
            [[1] * len(solution.input_ids) + [0] * (longest - len(solution.input_ids)) for solution in batch]
        )
        logits = scorer.model(ids.to(scorer.model.device), attention_mask=mask.to(scorer.model.device)).logits
        good = logits[..., verdicts].softmax(-1)[..., 0].tolist()
        scores += [[row[i] for i in solution.step_positions] for row, solution in zip(good, batch, strict=True)]
    return scores


def tokens_read(encoded: list[EncodedSolution]) -> tuple[int, int, int]:
    """The minimum number of tokens that a scorer must read without sharing prefixes, and the numbers that (i) and (ii)
    read, including padding."""
    least = sum(map(len, {tuple(solution.input_ids) for solution in encoded}))
    padded = [
        max(len(solution.input_ids) for solution in encoded[i : i + SAMPLES]) for i in range(0, len(encoded), SAMPLES)
    ]
    return (
        least,
        sum(position + 1 for solution in encoded for position in solution.step_positions),
        SAMPLES * sum(padded),
    )


def largest_gap(left: list[list[float]], right: list[list[float]]) -> float:
    """Largest difference of two sets of scores."""
    pairs = [(a, b) for first, second in zip(left, right, strict=True) for a, b in zip(first, second, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def main() -> None:
    """Times the three alternately, and prints solutions per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dial", choices=["dial", "20m"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num_solutions", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_batch_tokens", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    batching = {"batch_size": args.batch_size, "max_batch_tokens": args.max_batch_tokens}
    scorer, questions, steps = build(args.model, args.num_solutions, args.device, batching)
    encoded = encode_solutions(scorer.tokenizer, scorer.prm_format, questions, steps)
    lengths = sorted(len(solution.input_ids) for solution in encoded)
    mean_steps = sum(map(len, steps)) / len(steps)
    print(
        f"{args.model}, {sum(p.numel() for p in scorer.model.parameters()) / 1e6:.2f}M parameters, {args.device}, "
        f"{torch.get_num_threads()} threads, {batching}: {len(steps)} solutions, "
        f"{len({tuple(solution.input_ids) for solution in encoded})} of them distinct, {mean_steps:.1f} steps, "
        f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
    )
    least, one_by_one, together = tokens_read(encoded)
    print(f"tokens read, as a multiple of the minimum: (i) {one_by_one / least:.2f}, (ii) {together / least:.2f}")
    subset = questions[:: args.every], steps[:: args.every]
    sides = {
        "StepScorer": lambda: scorer.score(questions, steps),
        "(i) a pass per step": lambda: step_by_step(scorer, *subset),
        "(ii) a question at a time": lambda: question_by_question(scorer, questions, steps),
    }
    scores = {name: side() for name, side in sides.items()}  # a warm-up turn
    gaps = [
        largest_gap(scores["StepScorer"][:: args.every], scores["(i) a pass per step"]),
        largest_gap(scores["StepScorer"], scores["(ii) a question at a time"]),
    ]
    print(f"largest difference of scores: {max(gaps):.1e}")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.turns):
        for name, side in sides.items():
            start = time.perf_counter()
            rates[name].append(len(side()) / (time.perf_counter() - start))
    ours = rates["StepScorer"]
    measured = {}
    for name, seconds in rates.items():
        ratios = [mine / other for mine, other in zip(ours, seconds, strict=True)]
        measured[name] = (statistics.median(ratios), min(ratios), max(ratios))
        print(
            f"{name:28}{statistics.median(seconds):10.1f} solutions per second, StepScorer "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        _, per_step, per_question = measured.values()
        ratios = {"score_vs_per_step": per_step, "score_vs_question_at_a_time": per_question}
        args.output.write_text(json.dumps({"rates": rates, "gap": max(gaps), "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
