"""Error of MonteCarloScorer and of reward models against exact values on dial, by the number of continuations:
`python tests/benchmarks/monte_carlo_scorer.py --seeds 0 1 2 3 4`.

The exact success rate of a prefix under the shipped policy is computed by enumeration: all continuations are followed
token by token, except those with a probability below `--threshold`. Their total probability is the uncertainty of the
exact rate, and is printed. Intervals are 95% t-intervals over seeds.
"""

import argparse
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval
from transformers import AutoModelForCausalLM, AutoTokenizer

from erprm_trl import MonteCarloScorer, StepScorer, TransformersSampler, dial, grade, load_questions
from erprm_trl.dial.experiments.chain import FORMAT, DialChain
from erprm_trl.rollouts import Prompt, clean_steps, split_steps
from erprm_trl.steps import join_steps


MOST_TOKENS = 64


def exact_rate(sampler, prompt, answer, threshold):
    """Probability of a right answer after a prompt, and probability of the continuations that were not followed."""
    texts, probabilities, dropped = [], [], 0.0
    start = sampler.prompt_format.encode(prompt)
    paths, weights = torch.tensor([start]), torch.ones(1, dtype=torch.float64)
    for _ in range(MOST_TOKENS):
        logits = torch.cat([sampler.model(part).logits[:, -1] for part in paths.split(512)])
        joint = weights[:, None] * logits.double().softmax(-1)
        rows, tokens = (joint >= threshold).nonzero(as_tuple=True)
        dropped += joint[joint < threshold].sum().item()
        paths, weights = torch.cat([paths[rows], tokens[:, None]], dim=1), joint[rows, tokens]
        ends = tokens == sampler.tokenizer.eos_token_id
        for path, weight in zip(paths[ends].tolist(), weights[ends].tolist(), strict=True):
            texts.append(sampler.tokenizer.decode(path[len(start) : -1]))
            probabilities.append(weight)
        paths, weights = paths[~ends], weights[~ends]
        if not len(paths):
            break
    dropped += weights.sum().item()
    rewards = grade([prompt.prefix + text for text in texts], [answer] * len(texts), "exact", dial.ANSWER_PATTERN)
    return sum(reward * weight for reward, weight in zip(rewards, probabilities, strict=True)), dropped


def rmse(scores, exact):
    """Root mean squared difference over all prefixes, without the last steps."""
    errors = [
        (score - rate) ** 2
        for solution, rates in zip(scores, exact, strict=True)
        for score, rate in zip(solution[:-1], rates, strict=True)
    ]
    return (sum(errors) / len(errors)) ** 0.5


@torch.inference_mode()
def main():
    """Prints a row per number of continuations, and one per reward model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--num_questions", type=int, default=20)
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--threshold", type=float, default=1e-4)
    parser.add_argument("--output_dir", default="outputs/bench/monte_carlo_scorer")
    parser.add_argument("--no_reward_models", action="store_true", help="Do not train reward models.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH), AutoTokenizer.from_pretrained(dial.BASE_PATH)
    sampler = TransformersSampler(*policy, max_new_tokens=MOST_TOKENS, batch_size=512)
    rows = dial.make_questions(arguments.num_questions, seed=77)
    samples = sampler.sample([Prompt(row["question"]) for row in rows], 2, 77)
    asked, steps, exact, dropped = [], [], [], []
    for row, completions in zip(rows, samples, strict=True):
        for text in dict.fromkeys(completion.text for completion in completions):
            solution = clean_steps(split_steps(text, dial.SEPARATOR), dial.SEPARATOR)
            prefixes = [join_steps(solution[:count], dial.SEPARATOR) for count in range(1, len(solution))]
            pairs = [
                exact_rate(sampler, Prompt(row["question"], prefix), row["answer"], arguments.threshold)
                for prefix in prefixes
            ]
            asked.append(row["question"])
            steps.append(solution)
            exact.append([rate + rest / 2 for rate, rest in pairs])
            dropped += [rest for _, rest in pairs]
    rates = [rate for solution in exact for rate in solution]
    spread = sum(rate * (1 - rate) for rate in rates) / len(rates)
    print(f"{len(steps)} solutions, {len(rates)} prefixes, mean exact rate {sum(rates) / len(rates):.3f}")
    print(f"probability not followed: {sum(dropped) / len(dropped):.4f} on average, {max(dropped):.4f} at most")
    for count in arguments.ks:
        errors = []
        for seed in arguments.seeds:
            options = {"answers": load_questions(rows), "answer_pattern": dial.ANSWER_PATTERN, "seed": seed}
            scorer = MonteCarloScorer(sampler, "exact", count, splitter=dial.SEPARATOR, **options)
            errors.append(rmse(scorer.score(asked, steps), exact))
        costs, (mean, half) = scorer.costs, interval(errors)
        print(
            f"K = {count:<3}  RMSE {mean:.3f} ± {half:.3f}  theory {(spread / count) ** 0.5:.3f}  "
            f"{costs['continuations']} continuations, {costs['tokens']} tokens"
        )
    if not arguments.no_reward_models:
        with torch.inference_mode(False):
            print_reward_models(arguments, asked, steps, exact)


def print_reward_models(arguments, asked, steps, exact):
    """Trains a reward model at eta = 0 per seed, as the quickstart does, and prints its error."""
    base = StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT)
    print(f"base, not trained  RMSE {rmse(base.score(asked, steps), exact):.3f}")
    errors = []
    for seed in arguments.seeds:
        chain = DialChain(str(Path(arguments.output_dir, f"seed-{seed}")), seed=seed)
        rollouts = chain.collect("rollouts", chain.train_questions, seed, chain.num_solutions, chain.num_continuations)
        errors.append(rmse(chain.train(rollouts, eta=0.0).score(asked, steps), exact))
    mean, half = interval(errors)
    print(f"ER-PRM, eta = 0    RMSE {mean:.3f} ± {half:.3f}")


if __name__ == "__main__":
    main()
