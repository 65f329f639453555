"""Compares reward models from adaptive collections with reward models from a fixed K, on dial:
`python tests/benchmarks/adaptive_training.py`.

Each seed has its own questions, rollouts and models. All models select among the same test samples. Intervals are 95%
t-intervals over seeds, and differences to the fixed K are paired by seed.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from eta_comparison import interval

from erprm_trl import dial
from erprm_trl.dial.experiments.chain import TEST_SEED, DialChain
from erprm_trl.rollouts import TransformersSampler, collect_rollouts, load_questions
from erprm_trl.selection import score_rollouts, selection_curves


ARMS = {
    "fixed 16": (16, {}, {}),
    "fixed 8": (8, {}, {}),
    "adaptive 8": (8, {"allocation": "adaptive"}, {}),
    "adaptive 8, weighted": (8, {"allocation": "adaptive"}, {"label_weighting": "precision"}),
    "adaptive 4": (4, {"allocation": "adaptive"}, {}),
}


def main():
    """Runs each seed and prints the best-of-16 accuracies by min, and their differences to the first arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--eta", type=float, default=2.0)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--output_dir", default="outputs/bench/adaptive_training")
    arguments = parser.parse_args()
    folder = Path(arguments.output_dir)
    samples = DialChain(str(folder)).collect("samples", 200, TEST_SEED, 16, 0)
    results = {}
    for seed in arguments.seeds:
        results[seed] = run(folder, seed, samples, arguments)
        (folder / "adaptive_training.json").write_text(json.dumps(results, indent=1))
        print_table(list(results.values()))


def run(folder, seed, samples, arguments):
    """Number of generated rollouts, best-of-16 accuracy and AUC within questions of each arm."""
    chain = DialChain(str(folder / f"seed-{seed}"), max_steps=arguments.max_steps, seed=seed)
    scores, rollouts = {}, {}
    for name, (k, collection, labels) in ARMS.items():
        data = collect_rollouts(
            load_questions(dial.make_questions(arguments.questions, seed)),
            TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=512),
            Path(chain.output_dir, name.split(",")[0].replace(" ", "-")),
            num_continuations=k,
            splitter=dial.SEPARATOR,
            grading="exact",
            answer_pattern=dial.ANSWER_PATTERN,
            seed=seed,
            chunk_size=50,
            show_progress=False,
            **collection,
        )
        rollouts[name] = data.manifest["summary"]["rollouts"] - len(data)
        scores[name] = score_rollouts(chain.train(data, eta=arguments.eta, **labels), samples)
    curves = selection_curves(samples.solutions(), scores, [1, 16])
    return {
        name: {
            "rollouts": rollouts[name],
            "best_of_16": curves["models"][name]["min"]["best_of_n"][16]["mean"],
            "auc_within_questions": curves["models"][name]["min"]["auc_within_questions"],
            "pass@1": curves["pass"][1]["mean"],
        }
        for name in ARMS
    }


def print_table(runs):
    """Prints the means over seeds with their intervals."""
    print(f"pass@1 {runs[0]['fixed 16']['pass@1']:.3f}, {len(runs)} seeds")
    print(f"{'':<24}{'rollouts':>9}   best of 16 by min   - (fixed 16)       AUC within questions")
    for name in ARMS:
        best = [run[name]["best_of_16"] for run in runs]
        differences = [value - run["fixed 16"]["best_of_16"] for value, run in zip(best, runs, strict=True)]
        auc = [run[name]["auc_within_questions"] for run in runs]
        generated = sum(run[name]["rollouts"] for run in runs) / len(runs)
        columns = "".join("   {:.3f} ± {:.3f}    ".format(*interval(column)) for column in (best, differences, auc))
        print(f"{name:<24}{generated:>9.0f}{columns}")


if __name__ == "__main__":
    main()
