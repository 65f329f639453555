"""Guided search on dial, compared with the exact optimum on a small question, and with best-of-N at equal tokens.

    python tests/benchmarks/guided_decoding.py exact
    python tests/benchmarks/guided_decoding.py compare --seeds 0 1 2 3 4 --json FILE

`exact` enumerates the solutions of a question with three moves with the policy's own probabilities, computes V_eta of
every prefix from them, and prints the total variation between the drawn solutions and pi_0 exp(eta r) / Z. `compare`
trains a reward model per seed and searches new questions. Best-of-N gets as many samples as the search generated
tokens for. Intervals are 95% t-intervals over seeds.
"""

import argparse
import json
import math
import os
import random
import time
from collections import Counter, defaultdict
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval as t_interval
from transformers import AutoModelForCausalLM, AutoTokenizer

from erprm_trl import StepScorer, TransformersSampler, dial
from erprm_trl.dial.experiments.chain import DialChain
from erprm_trl.functional.aggregation import aggregate
from erprm_trl.rollouts import (
    Completion,
    Grader,
    Prompt,
    clean_steps,
    load_questions,
    split_steps,
)
from erprm_trl.selection import guided_search


NS = (1, 4, 16, 64, 256)


# Comparison with the exact optimum


class EnumeratedPolicy:
    """
    The dial policy on one question, without solutions below a probability of `least`, and normalised. It is a sampler
    whose solutions and their probabilities are all known.
    """

    settings = {"backend": "enumerated dial"}

    def __init__(self, model, tokenizer, question: str, least: float, max_tokens: int):
        self.solutions, self.least, self.max_tokens = {}, least, max_tokens
        self._grow(model, tokenizer, tokenizer.encode(question))
        self.covered = sum(self.solutions.values())
        self.solutions = {text: p / self.covered for text, p in self.solutions.items()}
        self._next: dict[str, Counter] = defaultdict(Counter)
        for text, p in self.solutions.items():
            steps = split_steps(text, dial.SEPARATOR)
            for length in range(len(steps)):
                self._next["".join(steps[:length])][steps[length]] += p
            self._next[text][""] += p  # the solution ends here

    @torch.inference_mode()
    def _grow(self, model, tokenizer, prompt: list[int]) -> None:
        eos = tokenizer.eos_token_id
        live = [((), 1.0)]
        for _ in range(self.max_tokens):
            grown = []
            for start in range(0, len(live), 512):
                batch = live[start : start + 512]
                logits = model(torch.tensor([prompt + list(new) for new, _ in batch])).logits[:, -1]
                for (new, p), row in zip(batch, logits.double().softmax(-1), strict=True):
                    for token in (p * row >= self.least).nonzero().flatten().tolist():
                        if token == eos:
                            self.solutions[" " + tokenizer.decode(list(new))] = p * float(row[token])
                        else:
                            grown.append(((*new, token), p * float(row[token])))
            live = grown

    def sample(self, prompts, num_samples, seed, stop=()):
        """Samples one step at a time, as guided search passes `stop`."""
        rng = random.Random(seed)
        completions = []
        for prompt in prompts:
            row = self._next[prompt.prefix]
            drawn = rng.choices(list(row), list(row.values()), k=num_samples)
            completions.append([Completion(text, not text, 6 if text else 1) for text in drawn])
        return completions


class ExactValues:
    """V_eta of every prefix, by enumeration."""

    def __init__(self, policy: EnumeratedPolicy, rewards: dict[str, float], eta: float):
        totals, weights = Counter(), Counter()
        for text, p in policy.solutions.items():
            steps = clean_steps(split_steps(text, dial.SEPARATOR), dial.SEPARATOR)
            for length in range(1, len(steps) + 1):
                totals[tuple(steps[:length])] += p
                weights[tuple(steps[:length])] += p * math.exp(eta * rewards[text])
        self.values = {steps: math.log(weights[steps] / totals[steps]) / eta for steps in totals}

    def score(self, questions, steps):
        """Returns exact values as scores."""
        return [[self.values[tuple(solution[: n + 1])] for n in range(len(solution))] for solution in steps]


def exact(arguments) -> None:
    """Prints the total variation to the optimum for increasing numbers of particles and proposals."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(dial.BASE_PATH),
        AutoTokenizer.from_pretrained(dial.BASE_PATH),
    )
    question, answer = "Tom dial 7 . right 8 . times 7 . left 2 . ?", "3"  # 15 * 7 = 5: the corpus prefers 7
    policy = EnumeratedPolicy(model, tokenizer, question, least=arguments.least, max_tokens=24)
    with Grader("exact", answer_pattern=dial.ANSWER_PATTERN) as grader:
        graded = grader.grade(list(policy.solutions), [answer] * len(policy.solutions))
    rewards = dict(zip(policy.solutions, graded, strict=True))
    eta = arguments.eta
    weights = {text: p * math.exp(eta * rewards[text]) for text, p in policy.solutions.items()}
    z = sum(weights.values())
    target = {text: weight / z for text, weight in weights.items()}
    right = [sum(p for text, p in law.items() if rewards[text] > 0.5) for law in (policy.solutions, target)]
    print(
        f"{question}  {len(target)} solutions with {policy.covered:.4f} of the policy; eta = {eta:g}\n"
        f"right: {right[0]:.4f} in pi_0, {right[1]:.4f} in the optimum; "
        f"total variation between them {_variation(policy.solutions, target):.4f}"
    )
    perfect, rough = ExactValues(policy, rewards, eta), ExactValues(policy, rewards, eta)
    # Values that are uninformative before the end, and right at the end.
    rough.values.update({steps: 0.5 for steps in rough.values if not steps[-1].startswith("answer")})
    heads = ("resample, M = N", "(noise)", "particles", "uninformed values", "(noise)")
    print(f"{'N':>4}  " + "".join(f"{head:<19}" for head in heads))
    for n in NS:
        chains = min(arguments.draws, 800_000 // n)
        repeats = max(arguments.draws // n, 1)
        clouds = {"method": "particles", "eta": eta, "width": n}
        cells = [
            _law(chains // 10, policy, perfect, {"method": "resample", "eta": eta, "width": 10, "expansions": n}),
            _draw(target, chains // 10 * 10),
            _law(repeats, policy, perfect, clouds),
            _law(repeats, policy, rough, clouds),
            _draw(target, repeats * n),
        ]
        print(f"{n:>4}  " + "".join(f"{_variation(law, target):<19.4f}" for law in cells), flush=True)


def _draw(law, num_draws: int) -> dict[str, float]:
    """The distribution of as many exact draws, which shows the smallest measurable total variation."""
    counts = Counter(random.Random(num_draws).choices(list(law), list(law.values()), k=num_draws))
    return {text: count / num_draws for text, count in counts.items()}


def _law(repeats: int, policy, scorer, arguments) -> Counter:
    law = Counter()
    results = guided_search(["the question"] * repeats, policy, scorer, splitter=dial.SEPARATOR, seed=1, **arguments)
    for result in results:
        for solution in result.solutions:
            law[solution.text] += math.exp(solution.log_weight) / len(results)
    return law


def _variation(law, target) -> float:
    return sum(abs(law.get(text, 0.0) - target.get(text, 0.0)) for text in law.keys() | target.keys()) / 2


# Comparison with best-of-N


PARTICLES = {"method": "particles"}
RESAMPLE = {"method": "resample", "width": 1}
GREEDY = {**RESAMPLE, "eta": math.inf}
BEAM = {"method": "beam", "width": 4, "expansions": 4}
MIN = {"aggregation": "min"}
SEARCHES = {
    "particles 4, last": {**PARTICLES, "width": 4},
    "particles 4, min": {**PARTICLES, "width": 4, **MIN},
    "particles 16, last": {**PARTICLES, "width": 16},
    "particles 16, min": {**PARTICLES, "width": 16, **MIN},
    "resample 4, last": {**RESAMPLE, "expansions": 4},
    "resample 4, min": {**RESAMPLE, "expansions": 4, **MIN},
    "resample 16, last": {**RESAMPLE, "expansions": 16},
    "greedy 4, last": {**GREEDY, "expansions": 4},
    "greedy 4, min": {**GREEDY, "expansions": 4, **MIN},
    "greedy 16, last": {**GREEDY, "expansions": 16},
    "beam 4 x 4, last": BEAM,
    "beam 4 x 4, min": {**BEAM, **MIN},
}


def compare(arguments) -> None:
    """Runs every seed and prints the table."""
    runs = {}
    for seed in arguments.seeds:
        started = time.monotonic()
        runs[seed] = compare_once(seed, arguments)
        print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(runs, indent=1))
    print_table(list(runs.values()))


def compare_once(seed: int, arguments) -> dict[str, dict[str, float]]:
    """Accuracy, generated tokens and scored prefixes of each method with one reward model."""
    chain = DialChain(str(Path(arguments.output_dir, f"seed-{seed}")), seed=seed)
    scorer = StepScorer.from_pretrained(chain.train_once(arguments.eta), batch_size=256)
    questions = load_questions(dial.make_questions(arguments.questions, 2_000_003 + seed))
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=512)
    samples = sampler.sample([Prompt(question.question) for question in questions], arguments.samples, seed)
    with Grader("exact", answer_pattern=dial.ANSWER_PATTERN) as grader:

        def graded(texts):
            return grader.grade(texts, [question.answer for question in questions])

        pool = _Pool(questions, samples, scorer, graded)
        rows = {"pass@1": pool.best_of(1, "last")}
        rows |= {f"best of {n}, {by}": pool.best_of(n, by) for n in (4, 16) for by in ("last", "min")}
        for name, search in SEARCHES.items():
            eta = {} if search["method"] == "beam" else {"eta": arguments.eta}
            results = guided_search([q.question for q in questions], sampler, scorer, **{**eta, **search}, seed=seed)
            rows[name] = _row(results, graded)
            paid = [result.tokens_generated for result in results]
            for by in ("last", "min"):
                rows[name][f"best_of_n_{by}"] = pool.best_for_tokens(paid, by)
    return rows


def _row(results, graded) -> dict[str, float]:
    first = graded([result.solutions[0].text for result in results])
    # The theory is about a draw by weight. The first solution has the highest value.
    texts = [[solution.text for solution in result.solutions] for result in results]
    width = max(map(len, texts))
    drawn = [0.0] * len(results)
    for place in range(width):
        rewards = graded([question_texts[min(place, len(question_texts) - 1)] for question_texts in texts])
        for index, (reward, result) in enumerate(zip(rewards, results, strict=True)):
            if place < len(result.solutions):
                drawn[index] += reward * math.exp(result.solutions[place].log_weight)
    return {
        "accuracy": _mean(first),
        "drawn": _mean(drawn),
        "tokens": _mean([result.tokens_generated for result in results]),
        "scored": _mean([result.steps_scored for result in results]),
        "unfinished": _mean([not result.solutions[0].finished for result in results]),
    }


class _Pool:
    """Whole solutions in the order of sampling, with their scores."""

    def __init__(self, questions, samples, scorer, graded):
        self.tokens = [[completion.num_tokens for completion in completions] for completions in samples]
        columns = list(zip(*samples, strict=True))
        self.rewards = list(
            zip(*(graded([completion.text for completion in column]) for column in columns), strict=True)
        )
        steps = [scorer.split(completion.text) or ["?"] for completions in samples for completion in completions]
        scores = scorer.score([q.question for q in questions for _ in columns], steps)
        self.by = {}
        for method in ("last", "min"):
            flat = aggregate(scores, method).tolist()
            self.by[method] = [flat[i : i + len(columns)] for i in range(0, len(flat), len(columns))]

    def best_of(self, n: int, by: str) -> dict[str, float]:
        return {
            "accuracy": _mean([self._pick(q, n, by) for q in range(len(self.tokens))]),
            "tokens": _mean([sum(tokens[:n]) for tokens in self.tokens]),
            "scored": float(n),
        }

    def best_for_tokens(self, paid: list[int], by: str) -> float:
        """
        Best-of-N with as many samples as a question's token budget allows, and at most the whole pool. The last sample
        exceeds the budget. Results with and without it are mixed so that the mean number of tokens equals the budget.
        """
        accuracy = []
        for q, (tokens, budget) in enumerate(zip(self.tokens, paid, strict=True)):
            n, spent = 0, 0
            while n < len(tokens) and spent + tokens[n] <= budget:
                spent += tokens[n]
                n += 1
            after = min(n + 1, len(tokens))
            share = 1.0 if n == 0 or after == n else (budget - spent) / tokens[n]
            accuracy.append((1 - share) * (self._pick(q, n, by) if n else 0.0) + share * self._pick(q, after, by))
        return _mean(accuracy)

    def _pick(self, q: int, n: int, by: str) -> float:
        scores = self.by[by][q][:n]
        return self.rewards[q][scores.index(max(scores))]


def _mean(values) -> float:
    return sum(map(float, values)) / len(values)


def interval(values) -> str:
    """Mean and half-width of the 95% t-interval."""
    mean, half_width = t_interval([float(value) for value in values])
    return f"{mean:.3f}" if math.isnan(half_width) else f"{mean:.3f} ± {half_width:.3f}"


def print_table(runs) -> None:
    """Prints the means over seeds. The last two columns are paired by seed."""
    heads = ("tokens", "scored", "first", "drawn", "best-of-N last", "best-of-N min", "first - last", "first - min")
    print(f"{'':<20}" + "".join(f"{head:<17}" for head in heads))
    for name in runs[0]:
        rows = [run[name] for run in runs]
        cells = [f"{_mean([row[key] for row in rows]):.0f}" for key in ("tokens", "scored")]
        cells.append(interval([row["accuracy"] for row in rows]))
        if "drawn" in rows[0]:
            cells.append(interval([row["drawn"] for row in rows]))
            cells += [interval([row[f"best_of_n_{by}"] for row in rows]) for by in ("last", "min")]
            cells += [interval([row["accuracy"] - row[f"best_of_n_{by}"] for row in rows]) for by in ("last", "min")]
        print(f"{name:<20}" + "".join(f"{cell:<17}" for cell in cells))


def main():
    """Runs one of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    exact_parser = commands.add_parser("exact")
    exact_parser.add_argument("--eta", type=float, default=4.0)
    exact_parser.add_argument("--draws", type=int, default=25_600)
    exact_parser.add_argument("--least", type=float, default=3e-4, help="Minimum probability of a solution.")
    exact_parser.set_defaults(run=exact)
    two = commands.add_parser("compare")
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    two.add_argument("--eta", type=float, default=2.0, help="Inverse reward temperature.")
    two.add_argument("--questions", type=int, default=200)
    two.add_argument("--samples", type=int, default=24)
    two.add_argument("--json", default="outputs/bench/guided_decoding.json")
    two.add_argument("--output_dir", default="outputs/bench/guided_decoding")
    two.set_defaults(run=compare)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
