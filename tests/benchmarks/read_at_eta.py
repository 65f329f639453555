"""Reads a reward model that was trained at eta 0 at another eta, and compares it with a model that was trained there.

python tests/benchmarks/read_at_eta.py --seeds 0 1 2 3 4 --json FILE
python tests/benchmarks/read_at_eta.py --experiment outputs/gsm8k-cpu --seeds 0 1

Each seed has its own training questions, rollouts and models on dial. All models score the same test samples, and
prefixes of the same held-out rollouts. Intervals are 95% t-intervals over seeds, and differences are paired by seed.
The second form compares the scores that `gsm8k_experiment.py` has written, without a model.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval

from erprm_trl.dial.experiments.chain import TEST_SEED, DialChain
from erprm_trl.functional import soft_value
from erprm_trl.reward_model.scoring import scores_at_eta
from erprm_trl.selection import measure_calibration, score_rollouts, selection_curves


N = 16
METHODS = ("min", "product", "mean")


def main():
    """Runs each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--eta", type=float, default=2.0)
    parser.add_argument("--json", default="outputs/bench/read_at_eta.json")
    parser.add_argument("--output_dir", default="outputs/bench/read_at_eta")
    parser.add_argument("--experiment", help="Output folder of gsm8k_experiment.py.")
    arguments = parser.parse_args()
    if arguments.experiment is not None:
        compare_written_scores(Path(arguments.experiment), arguments.seeds)
        return
    runs = {}
    for seed in arguments.seeds:
        runs[seed] = run(Path(arguments.output_dir, f"seed-{seed}"), seed, arguments.eta)
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(runs))
        print_table(list(runs.values()), arguments.eta)


def run(folder: Path, seed: int, eta: float) -> dict:
    """Trains a model at eta 0 and a model at `eta`, and measures the first, read at `eta`, against the second."""
    chain = DialChain(str(folder), seed=seed)
    rollouts = chain.collect("rollouts", chain.train_questions, seed, chain.num_solutions, chain.num_continuations)
    shared = DialChain(str(folder.parent))  # the same for all seeds
    samples = shared.collect("samples", chain.test_questions, TEST_SEED, N, 0)
    held_out = shared.collect("held_out", 100, TEST_SEED + 1, 1, 16)
    rates, values = chain.train(rollouts, eta=0.0), chain.train(rollouts, eta=eta)
    scorers = {"trained at 0": rates, "read at eta": rates.at_eta(eta), "trained at eta": values}
    scores = {name: score_rollouts(scorer, samples) for name, scorer in scorers.items()}
    curves = selection_curves(samples.solutions(), scores, [1, N])["models"]
    of_prefixes = {name: score_rollouts(scorer, held_out) for name, scorer in scorers.items()}
    calibration = {
        name: measure_calibration(held_out, of_prefixes[name], eta=0.0 if name == "trained at 0" else eta)
        for name in scorers
    }
    flat = {name: _flat(table) for name, table in scores.items()}
    return {
        "correlation": torch.corrcoef(torch.stack([flat["read at eta"], flat["trained at eta"]]))[0, 1].item(),
        "correlation_unread": torch.corrcoef(torch.stack([flat["trained at 0"], flat["trained at eta"]]))[0, 1].item(),
        "difference": (flat["read at eta"] - flat["trained at eta"]).mean().item(),
        "difference_unread": (flat["trained at 0"] - flat["trained at eta"]).mean().item(),
        "models": {
            name: {
                **{method: curves[name][method]["best_of_n"][N]["mean"] for method in METHODS},
                "auc": curves[name]["min"]["auc_within_questions"],
                "error": _error_at(held_out, of_prefixes[name], eta),
                "rate_error": calibration[name]["rates"]["error"]["mean"],
                "rate_ece": calibration[name]["rates"]["ece"],
            }
            for name in scorers
        },
    }


def compare_written_scores(experiment: Path, seeds: list[int]) -> None:
    """Prints the correlation and the mean difference of scores trained at an eta and scores trained at 0, as they are
    and read at this eta."""
    for seed in seeds:
        for eta in (2.0, 8.0):
            by_eta = [
                json.loads((experiment / f"erprm-eta-{trained:g}-seed-{seed}/scores/step_scores.json").read_text())
                for trained in (0.0, eta)
            ]
            keys = [key for key in by_eta[0]["scores"] if key in by_eta[1]["scores"]]
            rates, values = ([table["scores"][key] for key in keys] for table in by_eta)
            at_eta = torch.tensor([score for solution in values for score in solution])
            print(f"seed {seed}, eta {eta:g}, {len(at_eta)} steps:", end=" ")
            for name, table in (("as they are", rates), ("read at eta", scores_at_eta(rates, 0.0, eta))):
                flat = torch.tensor([score for solution in table for score in solution])
                correlation = torch.corrcoef(torch.stack([flat, at_eta]))[0, 1].item()
                difference = flat - at_eta
                print(f"{name}: correlation {correlation:.3f}, difference {difference.mean():+.3f},", end=" ")
                print(f"rms {difference.square().mean().sqrt():.3f};", end=" ")
            print()


def _flat(table) -> torch.Tensor:
    return torch.tensor([score for question in table for solution in question for score in solution])


def _error_at(held_out, table, eta: float) -> float:
    """Mean squared distance of the scores of proper prefixes from their values at eta, with the noise of 16
    continuations."""
    squares = []
    for question, question_scores in zip(held_out.solutions(), table, strict=True):
        for row, scores in zip(question, question_scores, strict=True):
            if row.is_usable:
                for score, rewards in zip(scores, row.prefix_rewards, strict=False):
                    squares.append((score - soft_value(torch.tensor(rewards), eta).item()) ** 2)
    return sum(squares) / len(squares)


def print_table(runs, eta):
    """Prints the means over seeds with their intervals, and paired differences to the model trained at eta."""
    print(f"eta = {eta:g}, {len(runs)} seeds")
    for name in ("correlation", "correlation_unread", "difference", "difference_unread"):
        print(f"{name:<22}" + "{:.3f} ± {:.3f}".format(*interval([run[name] for run in runs])))
    columns = list(runs[0]["models"]["read at eta"])
    print(f"{'':<22}" + "".join(f"{column:<18}" for column in columns))
    for name in runs[0]["models"]:
        cells = [interval([run["models"][name][column] for run in runs]) for column in columns]
        print(f"{name:<22}" + "".join(f"{mean:.3f} ± {half:.3f}     " for mean, half in cells))
    pairs = [
        [run["models"]["read at eta"][column] - run["models"]["trained at eta"][column] for run in runs]
        for column in columns
    ]
    cells = [interval(pair) for pair in pairs]
    print(f"{'read - trained at eta':<22}" + "".join(f"{mean:+.3f} ± {half:.3f}    " for mean, half in cells))


if __name__ == "__main__":
    main()
