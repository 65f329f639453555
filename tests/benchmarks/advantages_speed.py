"""Speed of generalised advantages against a loop over tokens: `python tests/benchmarks/advantages_speed.py`.

Both run in one process, in alternation. Prints the best processor time of each in milliseconds, and the largest
difference.
"""

import argparse
import time

import torch

from erprm_trl.functional import generalized_advantages


SHAPES = ((64, 256), (64, 1024), (64, 4096), (8, 16384))


def loop(rewards, values, mask, gamma, gae_lambda):
    """The recursion, one token at a time."""
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[-1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * gae_lambda * next_advantage
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    return advantages


def main() -> None:
    """Runs the turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'rows x tokens':<16}{'loop':>10}{'here':>10}{'ratio':>8}{'difference':>12}")
    for shape in SHAPES:
        rewards, values = torch.randn(2, *shape)
        mask = torch.rand(shape) < 0.9
        times = {loop: [], generalized_advantages: []}
        results = []
        for _ in range(options.turns + 1):
            results = []
            for function, seconds in times.items():
                started = time.process_time()
                results.append(function(rewards, values, mask, 1.0, 0.95))
                seconds.append(time.process_time() - started)
        slow, fast = (1000 * min(seconds[1:]) for seconds in times.values())
        difference = (results[0] - results[1]).abs().max().item()
        name = f"{shape[0]} x {shape[1]}"
        print(f"{name:<16}{slow:>10.2f}{fast:>10.2f}{slow / fast:>8.0f}{difference:>12.1e}")


if __name__ == "__main__":
    main()
