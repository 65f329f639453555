"""A policy with known probabilities: a sampler that draws from a table, exact values of every prefix, and the exact
optimum, the target distribution of guided search."""

import math
import random
from functools import cache

from erprm_trl.rollouts import Completion


# The probability of each step, by the number of steps before it. "end ..." ends the solution.
TABLE = [
    {"a\n": 0.5, "b\n": 0.3, "end x": 0.2},
    {"a\n": 0.2, "c\n": 0.5, "end x": 0.1, "end y": 0.2},
    {"end x": 0.6, "end y": 0.4},
]
REWARDS = {"end x": 0.3, "a end x": 1.0, "b end y": 1.0, "a c end y": 0.9, "b a end x": 0.8}  # else 0
STEP_TOKENS = 3


def solutions(prefix=()):
    """Every complete solution below a prefix, as a tuple of steps, with its probability given the prefix."""
    for step, probability in TABLE[len(prefix)].items():
        if step.startswith("end"):
            yield (*prefix, step), probability
        else:
            for whole, rest in solutions((*prefix, step)):
                yield whole, probability * rest


def reward(whole):
    return REWARDS.get(" ".join(step.strip() for step in whole), 0.0)


@cache
def value(steps, eta):
    """V_eta of a prefix (its steps without delimiters, a tuple) by enumeration of its continuations."""
    if steps and steps[-1].startswith("end"):
        return reward(steps)
    below = solutions(tuple(f"{step}\n" for step in steps))
    return math.log(sum(p * math.exp(eta * reward(whole)) for whole, p in below)) / eta


def policy():
    """The policy's distribution over the texts of solutions."""
    return {"".join(whole): p for whole, p in solutions()}


def optimum(eta, end_value=reward):
    """pi_0 exp(eta end_value) / Z, and Z."""
    weights = {"".join(whole): p * math.exp(eta * end_value(whole)) for whole, p in solutions()}
    z = sum(weights.values())
    return {text: weight / z for text, weight in weights.items()}, z


def total_variation(p, q):
    return sum(abs(p.get(key, 0.0) - q.get(key, 0.0)) for key in p.keys() | q.keys()) / 2


class TabularSampler:
    """Draws from `TABLE`. Draws depend on the seed, the prompt, and the prompt's earlier occurrences in the call."""

    settings = {"backend": "table"}

    def __init__(self, seeded=True):
        self.seeded, self.calls, self.num_tokens = seeded, [], 0

    def sample(self, prompts, num_samples, seed, stop=()):
        self.calls.append((prompts, num_samples, seed, stop))
        seen, completions = {}, []
        for prompt in prompts:
            seen[prompt] = seen.get(prompt, -1) + 1
            asked = f"Prompt(question={prompt.question!r}, prefix={prompt.prefix!r})"
            rng = random.Random(f"{seed if self.seeded else 0}/{asked}/{seen[prompt]}")
            completions.append([self._completion(prompt.prefix, stop, rng) for _ in range(num_samples)])
        return completions

    def _completion(self, prefix, stop, rng):
        steps = []
        while not steps or not (stop or steps[-1].startswith("end")):
            row = TABLE[prefix.count("\n") + len(steps)]
            steps += rng.choices(list(row), list(row.values()))
        self.num_tokens += STEP_TOKENS * len(steps)
        return Completion("".join(steps), steps[-1].startswith("end"), STEP_TOKENS * len(steps))


class TabularScorer:
    """Exact values of prefixes as step scores."""

    def __init__(self, eta):
        self.eta, self.calls = eta, []

    def score(self, questions, steps):
        self.calls.append(list(zip(questions, map(tuple, steps), strict=True)))
        return [[value(tuple(solution[: n + 1]), self.eta) for n in range(len(solution))] for solution in steps]
