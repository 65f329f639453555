"""Which eta picks best on dial, over seeds: `python tests/benchmarks/eta_comparison.py --seeds 0 1 2 3 4 --json FILE`.

Each seed draws its own training questions and rollouts and trains its own models; all choose among the same test samples. Intervals
are 95% t-intervals over seeds; differences to eta = 0 are paired by seed.
"""

import argparse
import json
import math
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from erprm_trl.dial.chain import BASE, OUTCOME, DialChain  # noqa: E402


T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values):
    """Mean and half-width of the 95% t-interval."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, T_95[len(values) - 1] * deviation / math.sqrt(len(values))


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
    n = max(runs[arguments.seeds[0]]["pass"])
    first = next(iter(runs.values()))
    print(
        f"pass@1 {first['pass'][1]['mean']:.3f}  majority@{n} {first['majority'][n]['mean']:.3f}  pass@{n} {first['pass'][n]['mean']:.3f}"
    )
    methods = list(next(iter(first["models"].values())))
    print(
        f"{'best of ' + str(n):<20}"
        + "".join(f"{method:<18}" for method in methods)
        + "AUC in questions  min - (eta = 0)"
    )
    for name in first["models"]:
        by_method = {m: [run["models"][name][m]["best_of_n"][n]["mean"] for run in runs.values()] for m in methods}
        aucs = [run["models"][name]["min"]["auc_within_questions"] for run in runs.values()]
        soft = [run["models"]["eta = 0"]["min"]["best_of_n"][n]["mean"] for run in runs.values()]
        differences = [one - other for one, other in zip(by_method["min"], soft, strict=True)]
        cells = "".join("{:.3f} ± {:.3f}     ".format(*interval(by_method[m])) for m in methods)
        suffix = "" if name in (BASE, "eta = 0") else "  {:+.3f} ± {:.3f}".format(*interval(differences))
        print(f"{name:<20}{cells}{'{:.3f} ± {:.3f}'.format(*interval(aucs))}   {suffix}")
    assert OUTCOME in first["models"]


if __name__ == "__main__":
    main()
