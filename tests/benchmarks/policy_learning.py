"""Learning of policies on dial over seeds: `python tests/benchmarks/policy_learning.py --seeds 0 1 2 3 4 --json FILE`.

Each seed has its own rollouts, reward models, questions and samples. In the setting "short", the shipped policy learns
only from the reward model, compared with TRL's GRPOTrainer on graded answers. In the setting "sparse", a noisier
policy is rarely right, so that answers carry little information. There, step rewards with answers are compared with
answers alone, with the same number of rollouts. The accuracy is graded by the true answer on new questions at
temperature 1. Finished runs are saved in FILE.
"""

import argparse
import functools
import json
import os
import shutil
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from eta_comparison import interval

from erprm_trl.dial import BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import TEST_SEED, DialChain
from erprm_trl.dial.experiments.policies import (
    COMPLETIONS,
    PPO,
    LearningCurve,
    accuracy,
    make_noisy_policy,
    train_online,
    train_raft,
)


# name: (setting, method, settings, eta of the reward model)
STEP = "step_grpo"
RUNS = {
    "raft": ("short", "raft", {}, 2.0),
    "step_grpo": ("short", STEP, {"credit": "difference"}, 2.0),
    "step_ppo": ("short", "step_ppo", PPO, 2.0),
    "step_grpo, min_form": ("short", STEP, {"credit": "min_form"}, 2.0),
    "step_grpo, sum": ("short", STEP, {"credit": "sum"}, 2.0),
    "step_grpo, outcome": ("short", STEP, {"credit": "outcome"}, 2.0),
    "answers only": ("short", "grpo", {}, None),
    "sparse: answers only": ("sparse", "grpo", {}, None),
    "sparse: difference": ("sparse", STEP, {"credit": "difference"}, 2.0),
    "sparse: min_form": ("sparse", STEP, {"credit": "min_form"}, 2.0),
    "sparse: sum": ("sparse", STEP, {"credit": "sum"}, 2.0),
    "sparse: outcome": ("sparse", STEP, {"credit": "outcome"}, 2.0),
    "sparse: difference, gamma 0": ("sparse", STEP, {"credit": "difference", "gamma": 0.0}, 2.0),
    "sparse: sum, gamma 0": ("sparse", STEP, {"credit": "sum", "gamma": 0.0}, 2.0),
    "sparse: sum, gamma 0, eta 0": ("sparse", STEP, {"credit": "sum", "gamma": 0.0}, 0.0),
    "sparse: sum, gamma 0, eta 8": ("sparse", STEP, {"credit": "sum", "gamma": 0.0}, 8.0),
}


# A seed of these takes less than 20 minutes; `--runs all` takes 30.
MAIN_RUNS = [name for name, run in RUNS.items() if run[0] == "short"]
MAIN_RUNS += ["sparse: answers only", "sparse: difference", "sparse: sum, gamma 0"]


def reward_model(seed, eta, folder):
    """The reward model of this seed at this eta. It is trained once."""
    chain = DialChain(str(folder), seed=seed)
    path = Path(folder, f"erprm-eta-{eta:g}")
    if not (path / "prm_format.json").exists():
        chain.train(chain.collect("rollouts", chain.train_questions, seed, 2, 8), eta=eta)
    return str(path)


def run(name, seed, folder, arguments):
    """One training run: its learning curve, final accuracy, explained variance of the critic, and seconds."""
    setting, method, settings, eta = RUNS[name]
    sparse = setting == "sparse"
    policy = noisy_policy(seed, folder) if sparse else BASE_PATH
    updates = arguments.sparse_updates if sparse else arguments.updates
    test = make_questions(arguments.test_questions, TEST_SEED)
    model = None if eta is None else reward_model(seed, eta, folder)
    out = Path(folder, "runs", name.replace(" ", "-").replace(":", "").replace(",", ""))
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    if method == "raft":
        trainer = train_raft(model, out, seed=seed, eval_questions=test)
        logs = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
        curve = [[index * 500 * 8, entry["eval_accuracy"]] for index, entry in enumerate(logs)]
    else:
        learning = LearningCurve(test, 2, arguments.every)
        trainer = train_online(
            method,
            model,
            out,
            updates=updates,
            answers=sparse,
            policy=policy,
            callbacks=[learning],
            seed=seed,
            **settings,
        )
        curve = [list(point) for point in learning.points]
    seconds = time.monotonic() - started
    explained = [
        log["value/explained_variance"] for log in trainer.state.log_history if "value/explained_variance" in log
    ]
    return {
        "curve": curve,
        "before": start_accuracy(policy, test),
        "after": accuracy(trainer.model, trainer.processing_class, test, 4, seed=1),
        "rollouts": 3 * 500 * 8 if method == "raft" else updates * COMPLETIONS,
        "explained_variance": explained[-1] if explained else None,
        "updates_done": trainer.state.global_step,
        "seconds": round(seconds, 1),
    }


def noisy_policy(seed, folder):
    """The noisier first policy of this seed. It is trained once."""
    path = Path(folder, "noisy")
    return str(path) if (path / "config.json").exists() else make_noisy_policy(path, seed=seed)


@functools.cache
def load(path):
    """A policy and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def start_accuracy(path, test):
    """Accuracy of a run's first policy."""
    return accuracy(*load(path), test, 4, seed=1)


def rollouts_to_reach(curve, level):
    """Interpolated number of rollouts at which a learning curve first reaches a level, or `None`."""
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if high >= level:
            return after if low >= high else before + (after - before) * max(0.0, level - low) / (high - low)
    return None


def summarize(seeds):
    """Means and 95% t-intervals over the seeds that have a run."""
    summary = {"seeds": sorted(map(int, seeds)), "gain_points": {}, "gain_interval": {}, "runs": {}}
    for name in RUNS:
        runs = [runs[name] for runs in seeds.values() if name in runs]
        if not runs:
            continue
        gain, half = interval([100 * (result["after"] - result["before"]) for result in runs])
        line = {
            "before": interval([result["before"] for result in runs])[0],
            "after": interval([result["after"] for result in runs]),
        }
        line["gain_points"] = (gain, half)
        if runs[0]["explained_variance"] is not None:
            line["explained_variance"] = interval([result["explained_variance"] for result in runs])
        line["seconds"] = interval([result["seconds"] for result in runs])[0]
        if name.startswith("sparse"):
            speedups = []
            for those in seeds.values():
                if name in those and "sparse: answers only" in those:
                    baseline = those["sparse: answers only"]["curve"]
                    reached = rollouts_to_reach(those[name]["curve"], baseline[-1][1])
                    needed = rollouts_to_reach(baseline, baseline[-1][1])
                    speedups.append(needed / reached if reached else None)
            if speedups and None not in speedups:
                line["fewer_rollouts"] = interval(speedups)
            line["fewer_rollouts_by_seed"] = speedups
        summary["runs"][name] = line
        if name in ("raft", "step_grpo", "step_ppo"):
            summary["gain_points"][name] = round(gain, 2)
            summary["gain_interval"][name] = round(half, 2)
    return summary


def print_table(summary):
    """Prints the summary as a table."""
    print(f"{'':<38}{'before':<9}{'after':<18}{'gain, points':<18}{'fewer rollouts':<18}{'explained var.':<18}seconds")
    for name, line in summary["runs"].items():
        cells = [f"{name:<38}{line['before']:.3f}    "]
        for key, scale in (
            ("after", ".3f"),
            ("gain_points", ".1f"),
            ("fewer_rollouts", ".2f"),
            ("explained_variance", ".2f"),
        ):
            pair = line.get(key)
            cells.append(f"{pair[0]:{scale}} ± {pair[1]:{scale}}".ljust(18) if pair else " " * 18)
        print("".join(cells) + f"{line['seconds']:.0f}")


def plot(seeds, path):
    """Plots the mean accuracy over seeds against the rollouts, with one panel per setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, setting, title in zip(
        panels, ("short", "sparse"), ("shipped policy, only step scores", "noisier start"), strict=True
    ):
        for name in (name for name in RUNS if RUNS[name][0] == setting):
            curves = [runs[name]["curve"] for runs in seeds.values() if name in runs]
            if curves:
                rollouts = [point[0] for point in curves[0]]
                means = [
                    sum(point) / len(point) for point in zip(*[[p[1] for p in curve] for curve in curves], strict=True)
                ]
                style = (
                    {"color": "black", "linestyle": "--"}
                    if "answers only" in name
                    else {"marker": "o", "markersize": 3}
                )
                axes.plot(rollouts, means, label=name.removeprefix("sparse: "), **style)
        axes.set(xlabel="rollouts", ylabel="accuracy on new questions", title=title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    """Runs the missing runs, prints the table and plots the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", default="outputs/bench/policy_learning.json")
    parser.add_argument("--output_dir", default="outputs/bench/policy_learning")
    parser.add_argument("--runs", nargs="+", default=MAIN_RUNS, choices=[*RUNS, "all"])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--sparse_updates", type=int, default=20)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--test_questions", type=int, default=200)
    arguments = parser.parse_args()
    file = Path(arguments.json)
    seeds = json.loads(file.read_text())["by_seed"] if file.exists() else {}
    for seed in arguments.seeds:
        runs = seeds.setdefault(str(seed), {})
        for name in RUNS if "all" in arguments.runs else arguments.runs:
            if name not in runs:
                runs[name] = run(name, seed, Path(arguments.output_dir, f"seed-{seed}"), arguments)
                result = runs[name]
                print(
                    f"seed {seed}, {name}: {result['before']:.3f} -> {result['after']:.3f}, {result['seconds']} s",
                    flush=True,
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({**summarize(seeds), "by_seed": seeds}))
    summary = summarize(seeds)
    file.write_text(json.dumps({**summary, "by_seed": seeds}, indent=1))
    plot(seeds, file.with_suffix(".png"))
    print_table(summary)


if __name__ == "__main__":
    main()
