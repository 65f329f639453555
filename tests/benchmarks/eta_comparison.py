"""Compares etas on dial over seeds: `python tests/benchmarks/eta_comparison.py --seeds 0 1 2 3 4 --json FILE`.

Each seed has its own training questions, rollouts and models. All models select among the same test samples.
Intervals are 95% t-intervals over seeds, and differences to eta = 0 are paired by seed.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from intervals import interval

from erprm_trl.dial.experiments.chain import DialChain


def main():
    """Runs the chain for each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", default="outputs/bench/eta_comparison.json")
    parser.add_argument("--output_dir", default="outputs/bench/eta_comparison")
    arguments = parser.parse_args()
    runs = {}
    for seed in arguments.seeds:
        runs[seed] = DialChain(str(Path(arguments.output_dir, f"seed-{seed}")), seed=seed).run()
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(runs))
    print_table(list(runs.values()))


def print_table(runs):
    """Prints the means over seeds with their intervals, and the differences to eta = 0."""
    first = runs[0]
    n = max(first["pass"])
    levels = {"pass@1": first["pass"][1], f"majority@{n}": first["majority"][n], f"pass@{n}": first["pass"][n]}
    print("  ".join(f"{name} {point['mean']:.3f}" for name, point in levels.items()))
    methods = list(next(iter(first["models"].values())))
    heads = [f"best of {n} by {methods[0]}", *methods[1:], "AUC within questions", f"{methods[0]} - (eta = 0)"]
    print(f"{'':<20}" + "".join(f"{head:<18}" for head in heads))
    best = {
        name: {method: [run["models"][name][method]["best_of_n"][n]["mean"] for run in runs] for method in methods}
        for name in first["models"]
    }
    for name, by_method in best.items():
        columns = [by_method[method] for method in methods]
        columns.append([run["models"][name][methods[0]]["auc_within_questions"] for run in runs])
        columns.append([a - b for a, b in zip(by_method[methods[0]], best["eta = 0"][methods[0]], strict=True)])
        print(f"{name:<20}" + "".join("{:.3f} ± {:.3f}     ".format(*interval(column)) for column in columns))


if __name__ == "__main__":
    main()
