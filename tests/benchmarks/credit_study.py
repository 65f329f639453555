"""Compares credits, normalisations and discounts of step rewards on dial over seeds:
`python tests/benchmarks/credit_study.py --seeds 90210 101 102`.

There are four settings. "dense" and "sparse" start from the shipped policy, which is right 7 times out of 10, and from
a noisier one, which is rarely right. "long" has chains of 8 to 12 moves, on which the shipped policy is trained first.
In these three, the policy also learns from graded answers. In "steps", it learns from step scores alone, for more
updates than are useful.

The accuracy of a run is the accuracy of its training samples, because no question is used twice. Every finished run is
kept in `seed-0/dense/difference.json` and so on, and skipped, so that the study can be stopped and continued at any
time. The table shows means and 95% t-intervals over seeds, and the worst seed. Ratios of rollouts are geometric
means. The last column is the accuracy after the number of generated tokens that every run has spent, including those
of continuations. `--guard` shows which of these runs `PolicyGuard` would have stopped at several limits.
"""

import argparse
import functools
import json
import math
import os
import shutil
import time
from itertools import accumulate, pairwise
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from intervals import interval

from erprm_trl import ERPRMConfig, ERPRMTrainer, MonteCarloScorer
from erprm_trl.dial import BASE_PATH, SEPARATOR, make_questions
from erprm_trl.dial.experiments.chain import FORMAT, TEST_SEED, DialChain
from erprm_trl.dial.experiments.policies import PPO, accuracy, make_noisy_policy, train_online
from erprm_trl.io.atomic_files import replace_file
from erprm_trl.policy.guards import PolicyGuard, _watched
from erprm_trl.rollouts.outcomes import outcome_labels


COMPLETIONS = 64  # per update
WINDOW = 5  # updates, over which an accuracy is averaged
SHORT, LONG = (3, 7), (8, 12)
SETTINGS = {  # name: moves per question, updates, share of wrong results of the first policy, whether answers count
    "dense": (SHORT, 60, None, True),
    "sparse": (SHORT, 60, 0.6, True),
    "steps": (SHORT, 120, None, False),
    "long": (LONG, 40, 0.08, True),
}
LONG_STEPS = 300  # of fine-tuning for long chains, which the shipped policy has not learned
TITLES = {
    "dense": "frequent right answers",
    "sparse": "rare right answers",
    "steps": "step scores alone",
    "long": "long chains",
}
METHODS: dict[str, tuple[str, dict]] = {"answers only": ("grpo", {})}
for _credit in ("difference", "sum", "min_form"):
    for _gamma in (1.0, 0.0):
        for _scale in ("group", "batch", "none"):
            _name = f"{_credit}, gamma {_gamma:g}, {_scale}"
            METHODS[_name] = ("step_grpo", {"credit": _credit, "gamma": _gamma, "scale_rewards": _scale})
for _scale in ("group", "batch", "none"):
    METHODS[f"outcome, {_scale}"] = ("step_grpo", {"credit": "outcome", "scale_rewards": _scale})
for _beta in (0.02, 0.1, 0.5):
    for _name in ("difference, gamma 1, group", "difference, gamma 0, batch", "sum, gamma 0, batch", "outcome, group"):
        METHODS[f"{_name}, beta {_beta:g}"] = ("step_grpo", {**METHODS[_name][1], "beta": _beta})
for _name in ("difference, gamma 0, batch", "sum, gamma 0, group", "sum, gamma 0, batch", "outcome, group"):
    METHODS[f"{_name}, center"] = ("step_grpo", {**METHODS[_name][1], "center": "outcome"})
for _weight in (0.3, 3.0):
    for _name in ("difference, gamma 0, batch", "sum, gamma 0, batch"):
        METHODS[f"{_name}, outcome weight {_weight:g}"] = (
            "step_grpo",
            {**METHODS[_name][1], "outcome_weight": _weight},
        )
METHODS["ppo, difference"] = ("step_ppo", {**PPO, "credit": "difference"})
METHODS["ppo, outcome"] = ("step_ppo", {**PPO, "credit": "outcome"})
METHODS["ppo, difference, critic erprm"] = ("step_ppo", {"credit": "difference", "critic": "erprm"})
METHODS["ppo, difference, beta 0.1"] = ("step_ppo", {**PPO, "credit": "difference", "beta": 0.1})
for _gae_lambda in (0.5, 0.0):
    METHODS[f"ppo, difference, lambda {_gae_lambda:g}"] = (
        "step_ppo",
        {**PPO, "credit": "difference", "gae_lambda": _gae_lambda},
    )
for _name in [name for name in METHODS if name.startswith("ppo")]:  # the learning rate falls to 0
    METHODS[f"{_name}, linear"] = ("step_ppo", {**METHODS[_name][1], "lr_scheduler_type": "linear"})
# Without a reward model. Continuations cost tokens, so these runs have fewer completions per update.
for _eta in (10.0, 50.0):
    METHODS[f"log_ratio, eta {_eta:g}"] = ("step_grpo", {"credit": "log_ratio", "eta": _eta, "splitter": SEPARATOR})
METHODS["log_ratio, eta 50, tokens"] = ("step_grpo", {"credit": "log_ratio", "eta": 50.0, "step_tokens": 1})
for _continuations, _completions in ((2, 16), (2, 32), (4, 16), (4, 64)):
    METHODS[f"monte_carlo, K {_continuations}, {_completions} completions"] = (
        "step_grpo",
        {
            "credit": "difference",
            "gamma": 0.0,
            "scale_rewards": "batch",
            "num_continuations": _continuations,
            "completions_per_update": _completions,
        },
    )
# An implicit reward model that was trained on outcomes alone. It does not change, or it is updated on the graded
# answers of each generation. In the setting "steps", answers train the reward model and not the policy.
for _when in ("frozen", "before_scoring", "after_scoring"):
    for _name in ("difference, gamma 1, group", "sum, gamma 0, group"):
        _update = {} if _when == "frozen" else {"update_reward_model": _when, "reward_model_learning_rate": 3e-4}
        METHODS[f"implicit {_when}, {_name}"] = ("step_grpo", {**METHODS[_name][1], **_update})
KEPT = ("steps/", "rewards/", "completions/clipped_ratio", "completions/mean_length", "kl", "loss", "value/")
KEPT += ("monte_carlo/", "reward_model/", "reward_parts/kl")


def first_policy(setting, seed, folder):
    """The policy that the runs of a setting start from. It is trained once per seed."""
    moves, _, slip, _ = SETTINGS[setting]
    if slip is None:
        return BASE_PATH
    path = Path(folder, f"policy-{setting}")
    if not (path / "config.json").exists():
        make_noisy_policy(path, slip=slip, seed=seed, moves=moves, steps=LONG_STEPS if moves == LONG else 60)
    return str(path)


def chain_of(setting, seed, folder):
    """The stages up to the reward models of a setting and seed."""
    moves = SETTINGS[setting][0]
    policy = first_policy("long", seed, folder) if moves == LONG else BASE_PATH
    name = "long" if moves == LONG else "short"
    return DialChain(str(Path(folder, f"chain-{name}")), seed=seed, policy=policy, moves=moves)


def reward_model(setting, seed, folder):
    """The reward model of a setting and seed. It is trained once."""
    chain = chain_of(setting, seed, folder)
    return chain.train_once(2.0, chain.train_questions // (2 if chain.moves == LONG else 1))


def implicit_reward_model(setting, seed, folder):
    """The implicit reward model of a setting and seed, with as many training steps as the other reward model. It is
    trained once."""
    chain = chain_of(setting, seed, folder)
    path = Path(chain.output_dir, "implicit")
    if not (path / "prm_format.json").exists():
        solutions = chain.collect("solutions", 2 * chain.train_questions, seed, 8, 0)
        args = ERPRMConfig(
            str(path), head="implicit", beta=0.05, separator=FORMAT.separator, splitter=FORMAT.splitter,
            prompt_template="{question}", max_steps=chain.max_steps, per_device_train_batch_size=64,
            per_device_eval_batch_size=256, learning_rate=chain.learning_rate, warmup_steps=10, save_strategy="no",
            report_to="none", bf16=False, gradient_checkpointing=False, seed=seed, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = ERPRMTrainer(chain.policy, args, train_dataset=outcome_labels(solutions))
        trainer.train()
        trainer.save_model()
    return str(path)


@functools.cache
def load(path):
    """A policy and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def run(setting, method, seed, folder, updates=None):
    """One training run: its log, first and final accuracy, and seconds."""
    moves, default_updates, _, answers = SETTINGS[setting]
    trainer_name, settings = METHODS[method][0], dict(METHODS[method][1])
    policy = first_policy(setting, seed, folder)
    completions = settings.pop("completions_per_update", COMPLETIONS)
    if "num_continuations" in settings:
        model = MonteCarloScorer("policy", num_continuations=settings.pop("num_continuations"), splitter=SEPARATOR)
    elif needs_answers(method):
        model = None
    else:
        make_model = implicit_reward_model if method.startswith("implicit") else reward_model
        model = make_model(setting, seed, folder)
    if not answers:  # answers are graded and logged, but not trained on
        settings = {**settings, "outcome_weight": 0.0}
    out = Path(folder, "trainers", setting, method.replace(", ", "-").replace(" ", "-"))
    started = time.monotonic()
    trainer = train_online(
        trainer_name,
        model,
        out,
        updates=updates or default_updates,
        answers=True,
        policy=policy,
        seed=seed,
        moves=moves,
        completions_per_update=completions,
        **{"logging_steps": 1, **settings},
    )
    seconds = time.monotonic() - started
    shutil.rmtree(out, ignore_errors=True)
    test = make_questions(200, TEST_SEED, *moves)
    history = [
        {key: value for key, value in entry.items() if key == "step" or key.startswith(KEPT)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    key = "rewards/answer_reward/mean" if trainer_name == "grpo" else "steps/accuracy"
    return {
        "before": accuracy(*load(policy), test, 4, seed=1),
        "after": accuracy(trainer.model, trainer.processing_class, test, 4, seed=1),
        "accuracy": [entry[key] for entry in history],
        "history": history,
        "completions": completions,
        "seconds": round(seconds, 1),
    }


def needs_answers(method):
    """Whether a method has no reward model, so that it learns from answers alone."""
    return method.startswith(("answers only", "log_ratio", "monte_carlo"))


def curve(result, by_tokens=False):
    """Training accuracy, averaged over the last updates, by the number of rollouts or of generated tokens, which
    include those of continuations."""
    values = result["accuracy"]
    averages = [sum(values[max(0, i + 1 - WINDOW) : i + 1]) / min(i + 1, WINDOW) for i in range(len(values))]
    completions = result.get("completions", COMPLETIONS)
    costs = [completions] * len(values)
    if by_tokens:
        costs = [
            completions * entry["completions/mean_length"] + entry.get("monte_carlo/tokens", 0)
            for entry in result["history"]
        ]
    return [[total, average] for total, average in zip(accumulate(costs), averages, strict=True)]


def accuracy_after(result, num_tokens):
    """Training accuracy of a run after a number of generated tokens, interpolated between updates."""
    points = [[0, result["before"]], *curve(result, by_tokens=True)]
    for (start, low), (end, high) in pairwise(points):
        if end >= num_tokens:
            return low + (high - low) * (num_tokens - start) / (end - start)
    return points[-1][1]


def load_results(folder):
    """Finished runs, by setting, method and seed."""
    results = {}
    for path in sorted(Path(folder).glob("seed-*/runs/*/*.json")):
        seed = int(path.parts[-4].removeprefix("seed-"))
        results.setdefault(path.parts[-2], {}).setdefault(path.stem, {})[seed] = json.loads(path.read_text())
    return results


def table(results):
    """Rows of the table of each setting: dictionaries with texts."""
    tables = {}
    for setting, methods in results.items():
        rows = []
        baseline = methods.get("answers only", {})
        # The budget that every run has spent, so that methods are compared after the same number of tokens
        budget = min(curve(result, by_tokens=True)[-1][0] for runs in methods.values() for result in runs.values())
        for method in [name for name in METHODS if name in methods]:
            runs = methods[method]
            row = {"method": method, "seeds": str(len(runs))}
            row["before"] = f"{interval([result['before'] for result in runs.values()])[0]:.3f}"
            for name in ("after", "lowest"):
                values = [
                    result["after"]
                    if name == "after"
                    else min(average for _, average in curve(result)[len(result["accuracy"]) // 3 :])
                    for result in runs.values()
                ]
                mean, half = interval(values)
                row[name] = with_interval(mean, half)
                row[f"worst {name}"] = f"{min(values):.3f}"
            paired = [seed for seed in runs if seed in baseline]
            if paired:
                mean, half = interval([runs[seed]["after"] - baseline[seed]["after"] for seed in paired])
                row["minus answers only"] = with_interval(mean, half, "+")
                for name, by_tokens in (("fewer rollouts", False), ("fewer tokens", True)):
                    speedups = [speedup(runs[seed], baseline[seed], by_tokens) for seed in paired]
                    if None not in speedups:
                        mean, half = interval([math.log(value) for value in speedups])
                        low, high = (f"{math.exp(mean + sign * half):.2f}" for sign in (-1, 1))
                        row[name] = f"{math.exp(mean):.2f}" + (f" ({low} to {high})" if len(speedups) > 1 else "")
                    else:
                        row[name] = f"not reached by {speedups.count(None)}"
            tokens = [curve(result, by_tokens=True)[-1][0] / 1000 for result in runs.values()]
            row["1000 tokens"] = f"{sum(tokens) / len(tokens):.0f}"
            mean, half = interval([accuracy_after(result, budget) for result in runs.values()])
            row[f"after {budget / 1000:.0f} thousand tokens"] = with_interval(mean, half)
            rows.append(row)
        tables[setting] = rows
    return tables


def with_interval(mean, half, sign=""):
    """A value over seeds as text. One seed has no interval."""
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def rollouts_to_reach(curve, level):
    """Interpolated number of rollouts at which a learning curve first reaches a level, or `None`."""
    for (before, low), (after, high) in pairwise(curve):
        if high >= level:
            return after if low >= high else before + (after - before) * max(0.0, level - low) / (high - low)
    return None


def speedup(result, baseline, by_tokens=False):
    """How many times fewer rollouts or tokens a run needs to reach the baseline's final accuracy, or `None`."""
    level = curve(baseline)[-1][1]
    reached = rollouts_to_reach([[0, result["before"]], *curve(result, by_tokens)], level)
    needed = rollouts_to_reach([[0, baseline["before"]], *curve(baseline, by_tokens)], level)
    return needed / reached if reached and needed else None


def print_tables(tables):
    """Prints one Markdown table per setting."""
    for setting, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n{setting}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(row.get(column, '') for column in columns)} |")


def stopped_at(guard, history, has_answers):
    """The update at which a guard would have stopped a run, or `None`."""
    unknown = () if has_answers else ("steps/accuracy", "steps/agreement")
    for index, entry in enumerate(history):
        guard._observe(_watched({key: value for key, value in entry.items() if key not in unknown}), index)
        if any(count >= guard.patience for count in guard._logs_outside.values()):
            return index
    return None


def print_guard(results):
    """Prints which runs the guard would have stopped, for several limits, and the accuracy at this time and at the
    end."""
    columns = "runs", "guard", "stopped", "accuracy when stopped", "accuracy at the end"
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    limits = [{"max_ratio": ratio, "max_plateau": None} for ratio in (1.25, 1.5, 2.0, 3.0)]
    limits += [{"max_plateau": number} for number in (5, 10, 20)]
    for setting, methods in results.items():
        everything = [(result, curve(result)) for runs in methods.values() for result in runs.values()]
        for is_collapsed in (True, False):
            runs = [
                (result["history"], [average for _, average in points])
                for result, points in everything
                if (min(average for _, average in points) < result["before"] - 0.1) == is_collapsed
            ]
            name = f"{setting}, {'collapsed' if is_collapsed else 'other'}"
            for limit in limits if runs else ():
                stops = [stopped_at(PolicyGuard(**limit), history, SETTINGS[setting][3]) for history, _ in runs]
                caught = [(values[stop], values[-1]) for stop, (_, values) in zip(stops, runs, strict=True) if stop]
                means = [f"{sum(column) / len(caught):.3f}" for column in zip(*caught, strict=True)] or ["", ""]
                described = ", ".join(f"{key}={value}" for key, value in limit.items())
                print(f"| {name} | {described} | {len(caught)} of {len(runs)} | {' | '.join(means)} |")


def plot(results, path):
    """Plots the accuracy against the rollouts: the mean over seeds, and every seed as a thin line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.4), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (setting, methods) in zip(panels, results.items(), strict=True):
        for index, method in enumerate(name for name in METHODS if name in methods):
            curves = [[average for _, average in curve(result)] for result in methods[method].values()]
            rollouts = [total for total, _ in curve(next(iter(methods[method].values())))]
            means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            color = "black" if method == "answers only" else f"C{index % 10}"
            style = ("-", "--", ":")[index // 10 % 3]
            for values in curves:
                axes.plot(rollouts, values, color=color, linestyle=style, linewidth=0.4, alpha=0.6)
            axes.plot(rollouts, means, label=f"{method} ({len(curves)} seeds)", color=color, linestyle=style)
        axes.set(xlabel="rollouts", title=TITLES[setting], ylim=(0, 1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("accuracy of training samples")
    figure.savefig(path, dpi=100)


def main():
    """Runs the missing runs, prints the tables and plots the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[90210, *range(101, 110)])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--updates", type=int, help="Updates per run, for a rehearsal.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/credit_study"))
    parser.add_argument("--guard", action="store_true", help="Show which runs PolicyGuard would stop.")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        folder = arguments.output_dir / f"seed-{seed}"
        for setting in arguments.settings:
            for method in arguments.methods:
                path = folder / "runs" / setting / f"{method}.json"
                if path.exists() or (needs_answers(method) and not SETTINGS[setting][3]):
                    continue
                result = run(setting, method, seed, folder, arguments.updates)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, json.dumps(result))
                print(
                    f"seed {seed}, {setting}, {method}: {result['before']:.3f} -> {result['after']:.3f}, "
                    f"lowest {min(average for _, average in curve(result)):.3f}, {result['seconds']} s",
                    flush=True,
                )
    results = {
        setting: {method: runs for method, runs in methods.items() if method in arguments.methods}
        for setting, methods in load_results(arguments.output_dir).items()
        if setting in arguments.settings
    }
    if results:
        print_tables(table(results))
        plot(results, arguments.output_dir / "credit_study.png")
    if arguments.guard:
        print_guard(results)


if __name__ == "__main__":
    main()
