"""What policies learn from step scores alone on dial: `python tests/benchmarks/policy_learning.py --seeds 0 1 2 3 4`.

Trains the shipped policy with RAFT, step GRPO and step PPO with their defaults, for as many completions as the recipes
of dial. Each seed has its own rollouts, reward model (eta = 2), questions and samples. The accuracy is pass@1, graded
by the true answer on 200 new questions with 4 samples each at temperature 1. Finished seeds are kept in
`seed-0/accuracy.json` and so on, and skipped. `credit_study.py` compares the options of step GRPO.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from intervals import interval

from erprm_trl import StepScorer
from erprm_trl.dial.experiments.chain import DialChain
from erprm_trl.dial.experiments.policies import compare_policies
from erprm_trl.io.atomic_files import replace_file


TITLES = {"before": "before training", "raft": "RAFT", "step_grpo": "step GRPO", "step_ppo": "step PPO"}


def main():
    """Trains the missing seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--updates", type=int, default=40, help="Updates of step GRPO and step PPO.")
    parser.add_argument("--questions_per_round", type=int, default=500, help="Questions of each of RAFT's 3 rounds.")
    parser.add_argument("--test_questions", type=int, default=200)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/policy_learning"))
    options = parser.parse_args()
    seeds = []
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        path = folder / "accuracy.json"
        if not path.exists():
            scorer = StepScorer.from_pretrained(DialChain(str(folder), seed=seed).train_once(2.0))
            results = compare_policies(
                scorer, folder, options.test_questions, updates=options.updates, rounds=3,
                questions_per_round=options.questions_per_round, seed=seed,
            )  # fmt: skip
            replace_file(path, json.dumps(results))
        seeds.append({name: result["mean"] for name, result in json.loads(path.read_text()).items()})
        print(
            f"seed {seed}: {', '.join(f'{TITLES[name]} {value:.3f}' for name, value in seeds[-1].items())}", flush=True
        )
    print(f"\n| step scores alone, {len(seeds)} seeds | accuracy | worst seed | gain, points |\n|---|---|---|---|")
    for name, title in TITLES.items():
        values = [seed[name] for seed in seeds]
        mean, half = interval(values)
        gain, gain_half = interval([100 * (seed[name] - seed["before"]) for seed in seeds])
        shown = "" if name == "before" else f"{gain:.1f} ± {gain_half:.1f}"
        print(f"| {title} | {mean:.3f} ± {half:.3f} | {min(values):.3f} | {shown} |")


if __name__ == "__main__":
    main()
