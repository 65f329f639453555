"""Turn credit for an agent on dial: `python tests/benchmarks/agents_on_dial.py --seeds 0 1 2 3 4 --json FILE`.

An agent calls a tool for each move of a question, and some of its calls are wrong. It is trained with TRL's
GRPOTrainer on the reward of its environment alone, and with StepGRPOTrainer, whose reward model was trained on
continuations of the agent's own conversations. Each seed has its own agent, labels, reward model and questions. The
learning curve is the share of solved questions in each update, which are new questions. Finished runs are saved in
FILE, and the same command continues after a kill.
"""

import argparse
import json
import os
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from intervals import interval
from policy_learning import rollouts_to_reach

from erprm_trl.dial.experiments.agents import (
    COMPLETIONS,
    collect_turn_labels,
    make_agent_policy,
    train_agent,
    train_turn_model,
)


BASELINE = "outcome only"
TURN_CREDIT = {"gamma": 0.0, "outcome_weight": 1.0}
RUNS = {
    BASELINE: None,
    "difference": {"credit": "difference", **TURN_CREDIT},
    "sum": {"credit": "sum", **TURN_CREDIT},
}
WINDOW = 5  # number of updates whose accuracy is averaged


def once(path, make):
    """The folder of a model, which is made if it does not exist."""
    return str(path) if (path / "config.json").exists() else make(path)


def run(name, seed, folder, arguments):
    """One training run: the accuracy in each update, and seconds."""
    policy = once(folder / "agent", lambda path: make_agent_policy(path, seed=seed, steps=arguments.sft_steps))
    reward_model, label_rollouts = None, 0
    if RUNS[name] is not None:
        labels = collect_turn_labels(policy, folder / "rollouts", questions=arguments.label_questions, seed=seed)
        label_rollouts = labels.manifest["summary"]["rollouts"]
        reward_model = once(folder / "erprm", lambda path: train_turn_model(labels, path, seed=seed))
    started = time.monotonic()
    out = folder / "runs" / name.replace(" ", "-")
    trainer = train_agent(policy, out, reward_model, updates=arguments.updates, seed=seed, **(RUNS[name] or {}))
    accuracy = [log["rewards/DialEnvironment/mean"] for log in trainer.state.log_history if "reward" in log]
    agreement = [log["steps/agreement"] for log in trainer.state.log_history if "steps/agreement" in log]
    return {
        "accuracy": accuracy,
        "agreement": agreement,
        "label_rollouts": label_rollouts,
        "seconds": round(time.monotonic() - started, 1),
    }


def curve(accuracy):
    """Points of the number of conversations so far, and the mean accuracy in a window of updates."""
    return [
        ((end - WINDOW / 2) * COMPLETIONS, sum(accuracy[end - WINDOW : end]) / WINDOW)
        for end in range(WINDOW, len(accuracy) + 1)
    ]


def summarize(seeds):
    """Means and 95% t-intervals over the seeds that have a run, and differences from the baseline within a seed."""
    summary = {"seeds": sorted(map(int, seeds)), "runs": {}}
    for name in RUNS:
        pairs = [(runs[name], runs.get(BASELINE)) for runs in seeds.values() if name in runs]
        if not pairs:
            continue
        curves = [curve(result["accuracy"]) for result, _ in pairs]
        line = {
            "before": interval([points[0][1] for points in curves]),
            "after": interval([points[-1][1] for points in curves]),
            "seconds": interval([result["seconds"] for result, _ in pairs])[0],
            "label_rollouts": interval([result["label_rollouts"] for result, _ in pairs])[0],
        }
        with_baseline = [
            (points, curve(pair[1]["accuracy"])) for points, pair in zip(curves, pairs, strict=True) if pair[1]
        ]
        if name != BASELINE and with_baseline:
            fewer = []
            for points, baseline in with_baseline:
                final = baseline[-1][1]
                reached = rollouts_to_reach(points, final)
                fewer.append(None if reached is None else rollouts_to_reach(baseline, final) / reached)
            line["fewer_rollouts_by_seed"] = fewer
            if None not in fewer:
                line["fewer_rollouts"] = interval(fewer)
            line["gain_points"] = interval([100 * (points[-1][1] - base[-1][1]) for points, base in with_baseline])
        summary["runs"][name] = line
    return summary


def print_table(summary):
    """Prints the summary as a table."""
    print(f"{'':<16}{'before':<16}{'after':<16}{'points gained':<18}{'fewer rollouts':<16}seconds")
    for name, line in summary["runs"].items():
        cells = [f"{name:<16}"]
        for key, scale, width in (("before", ".3f", 16), ("after", ".3f", 16), ("gain_points", ".1f", 18)):
            pair = line.get(key)
            cells.append((f"{pair[0]:{scale}} ± {pair[1]:{scale}}" if pair else "").ljust(width))
        pair = line.get("fewer_rollouts")
        shown = f"{pair[0]:.2f} ± {pair[1]:.2f}" if pair else ""
        print("".join(cells) + f"{shown:<16}{line['seconds']:.0f}")


def main():
    """Runs the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", default="outputs/bench/agents_on_dial.json")
    parser.add_argument("--output_dir", default="outputs/bench/agents_on_dial")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--label_questions", type=int, default=300)
    parser.add_argument("--sft_steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(arguments.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    seeds = json.loads(file.read_text())["by_seed"] if file.exists() else {}
    for seed in arguments.seeds:
        runs = seeds.setdefault(str(seed), {})
        for name in arguments.runs:
            if name not in runs:
                runs[name] = run(name, seed, Path(arguments.output_dir, f"seed-{seed}"), arguments)
                points = curve(runs[name]["accuracy"])
                print(
                    f"seed {seed}, {name}: {points[0][1]:.3f} -> {points[-1][1]:.3f}, {runs[name]['seconds']} s",
                    flush=True,
                )
                file.write_text(json.dumps({**summarize(seeds), "by_seed": seeds}, indent=1))
    print_table(summarize(seeds))


if __name__ == "__main__":
    main()
