"""Turn credit for an agent on dial: `python tests/benchmarks/agents_on_dial.py --seeds 0 1 2 3 4 --json FILE`.

An agent moves a dial with a tool, and most of its conversations have a wrong move. It is trained with TRL's
GRPOTrainer on the reward of its environment alone, and with StepGRPOTrainer, whose reward model was trained on
continuations of the agent's own conversations. The reward model itself is measured first. Each seed has its own agent,
labels, reward model and questions. The learning curve is the share of solved questions in each update, which are new
questions. Finished runs are saved in FILE, and the same command continues after a kill.
"""

import argparse
import json
import os
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from credit_study import rollouts_to_reach
from intervals import interval

from erprm_trl.dial.experiments.agents import (
    COMPLETIONS,
    collect_conversations,
    make_agent_policy,
    train_agent,
    train_turn_model,
    turn_auc,
)


BASELINE = "outcome only"
RUNS = {
    BASELINE: None,
    "difference": {"credit": "difference"},
    "difference, last": {"credit": "difference", "aggregation": "last"},
    "sum": {"credit": "sum"},
    "sum, outcome weight 0.3": {"credit": "sum", "outcome_weight": 0.3},
}
TEST_SEED = 1_000_003  # of the questions whose conversations measure the reward model
WINDOW = 5  # number of updates whose accuracy is averaged


def once(path, make):
    """The folder of a model, which is made if it does not exist."""
    return str(path) if (path / "config.json").exists() else make(path)


def make_models(seed, folder, arguments):
    """The agent of a seed, its reward model, and how good the reward model is."""
    policy = once(folder / "agent", lambda path: make_agent_policy(path, seed=seed, steps=arguments.sft_steps))
    labels = collect_conversations(
        policy,
        folder / "rollouts",
        questions=arguments.label_questions,
        num_continuations=arguments.num_continuations,
        seed=seed,
    )
    reward_model = once(folder / "erprm", lambda path: train_turn_model(labels, path, eta=arguments.eta, seed=seed))
    measured = folder / "reward_model.json"
    if not measured.exists():
        test = collect_conversations(
            policy,
            folder / "test",
            questions=60,
            num_solutions=8,
            num_continuations=0,
            temperature=1.0,
            seed=TEST_SEED,
        )
        facts = {"auc": turn_auc(reward_model, test), "label_rollouts": labels.manifest["summary"]["rollouts"]}
        measured.write_text(json.dumps({**facts, "accuracy": test.manifest["summary"]["mean_outcome_reward"]}))
    return policy, reward_model, json.loads(measured.read_text())


def run(name, seed, folder, arguments):
    """One training run: the accuracy in each update, and seconds."""
    policy, reward_model, measured = make_models(seed, folder, arguments)
    started = time.monotonic()
    out = folder / "runs" / name.replace(" ", "-").replace(",", "")
    reward_model = None if RUNS[name] is None else reward_model
    trainer = train_agent(policy, out, reward_model, updates=arguments.updates, seed=seed, **(RUNS[name] or {}))
    accuracy = [log["rewards/DialByHand/mean"] for log in trainer.state.log_history if "reward" in log]
    agreement = [log["steps/agreement"] for log in trainer.state.log_history if "steps/agreement" in log]
    return {
        "accuracy": accuracy,
        "agreement": agreement,
        "reward_model": measured,
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
    summary = {"seeds": sorted(map(int, seeds)), "reward_model": {}, "runs": {}}
    measured = [next(iter(runs.values()))["reward_model"] for runs in seeds.values() if runs]
    for key in measured[0] if measured else ():
        summary["reward_model"][key] = interval([facts[key] for facts in measured])
    for name in RUNS:
        pairs = [(runs[name], runs.get(BASELINE)) for runs in seeds.values() if name in runs]
        if not pairs:
            continue
        curves = [curve(result["accuracy"]) for result, _ in pairs]
        line = {
            "before": interval([points[0][1] for points in curves]),
            "after": interval([points[-1][1] for points in curves]),
            "seconds": interval([result["seconds"] for result, _ in pairs])[0],
            "rollouts_to_half_by_seed": [rollouts_to_reach(points, 0.5) for points in curves],
            "worst_after": min(points[-1][1] for points in curves),
        }
        with_baseline = [
            (points, curve(pair[1]["accuracy"])) for points, pair in zip(curves, pairs, strict=True) if pair[1]
        ]
        if name != BASELINE and with_baseline:
            fewer = []
            line["seeds_without_baseline_gain"] = 0
            for points, baseline in with_baseline:
                final = baseline[-1][1]
                if final <= baseline[0][1]:  # any run reaches the accuracy of a baseline that learned nothing
                    line["seeds_without_baseline_gain"] += 1
                    continue
                reached = rollouts_to_reach(points, final)
                fewer.append(None if reached is None else rollouts_to_reach(baseline, final) / reached)
            line["fewer_rollouts_by_seed"] = fewer
            if fewer and None not in fewer:
                line["fewer_rollouts"] = interval(fewer)
            line["gain_points"] = interval([100 * (points[-1][1] - base[-1][1]) for points, base in with_baseline])
        summary["runs"][name] = line
    return summary


def print_table(summary):
    """Prints the summary as a table."""
    measured = (f"{key} {mean:.3g} ± {half:.2g}" for key, (mean, half) in summary["reward_model"].items())
    print("reward model:", ", ".join(measured))
    print(f"{'':<25}{'before':<16}{'after':<16}{'points gained':<18}{'fewer rollouts':<16}", end="")
    print("worst seed  seconds  rollouts to 0.5")
    for name, line in summary["runs"].items():
        cells = [f"{name:<25}"]
        for key, scale, width in (("before", ".3f", 16), ("after", ".3f", 16), ("gain_points", ".1f", 18)):
            pair = line.get(key)
            cells.append((f"{pair[0]:{scale}} ± {pair[1]:{scale}}" if pair else "").ljust(width))
        pair = line.get("fewer_rollouts")
        shown = f"{pair[0]:.2f} ± {pair[1]:.2f}" if pair else ""
        half = ["never" if rollouts is None else f"{rollouts:.0f}" for rollouts in line["rollouts_to_half_by_seed"]]
        print("".join(cells) + f"{shown:<16}{line['worst_after']:<12.3f}{line['seconds']:<9.0f}{', '.join(half)}")
    without = max(line.get("seeds_without_baseline_gain", 0) for line in summary["runs"].values())
    if without:
        print(f"{without} of the seeds are not in 'fewer rollouts', because their baseline learned nothing.")


def main():
    """Runs the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", default="outputs/bench/agents_on_dial_2.json")
    parser.add_argument("--output_dir", default="outputs/bench/agents_on_dial_2")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--label_questions", type=int, default=100)
    parser.add_argument("--num_continuations", type=int, default=4)
    parser.add_argument("--eta", type=float, default=2.0, help="Eta of the labels.")
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
    print_table(summarize({seed: runs for seed, runs in seeds.items() if int(seed) in arguments.seeds}))


if __name__ == "__main__":
    main()
