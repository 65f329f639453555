"""Runs every stage on the embedded task: rollouts, labels at several eta, reward models, best-of-N and three policies.

It takes a few minutes on two CPU cores, and needs neither a network nor other data.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from .. import report
from ..dial import experiments
from ..io.atomic_files import make_folder, replace_file
from ..reward_model import scoring
from .console import quiet, stage


POLICIES = {
    "before": "before training",
    "raft": "RAFT",
    "step_grpo": "step GRPO",
    "step_ppo": "step PPO",
}


@dataclass
class QuickstartArguments:
    """Sizes of the quickstart. The defaults are the values in recipes/dial/quickstart.yaml."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Folder for all results and the log."})
    train_questions: int = field(default=400, metadata={"help": "Number of questions to collect rollouts for."})
    num_solutions: int = field(default=2, metadata={"help": "Number of solutions per question."})
    num_continuations: int = field(default=8, metadata={"help": "K, the number of continuations per prefix."})
    test_questions: int = field(default=200, metadata={"help": "Number of fresh questions to answer."})
    num_samples: int = field(default=16, metadata={"help": "N, the number of solutions per fresh question."})
    etas: list[float] = field(
        default_factory=lambda: [0.0, 2.0, 8.0, float("inf")], metadata={"help": "One reward model per eta."}
    )
    max_steps: int = field(default=100, metadata={"help": "Number of training steps per reward model."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of the reward models."})
    seed: int = field(default=0, metadata={"help": "Seed of the training questions, rollouts and models."})
    updates: int = field(
        default=20, metadata={"help": "Number of updates of step GRPO and step PPO, 256 completions each."}
    )
    rounds: int = field(default=2, metadata={"help": "Number of RAFT rounds."})
    questions_per_round: int = field(
        default=300, metadata={"help": "Number of questions per RAFT round, 8 solutions each."}
    )


def main(arguments: QuickstartArguments) -> dict:
    """Runs all stages, prints two tables, and writes `summary.json`, `best_of_n.png` and `report.html`."""
    folder = make_folder(arguments.output_dir)
    with quiet(folder / "_quickstart.log"):
        return _run(arguments, folder)


def _run(arguments: QuickstartArguments, folder: Path) -> dict:
    started = time.monotonic()
    policy_sizes = {name: getattr(arguments, name) for name in ("updates", "rounds", "questions_per_round")}
    chain_sizes = {name: value for name, value in vars(arguments).items() if name not in policy_sizes}
    curves = experiments.DialChain(**chain_sizes).run()
    print(f"\n{report.format_selection_table(curves, arguments.num_samples)}\n")
    eta = min(arguments.etas, key=lambda value: abs(value - 2.0))
    policies = experiments.compare_policies(
        scoring.StepScorer.from_pretrained(folder / f"erprm-eta-{eta:g}", batch_size=256),
        folder / "policies",
        arguments.test_questions,
        seed=arguments.seed,
        **policy_sizes,
    )
    print(f"\n{format_policy_table(policies, eta)}\n")
    stage("Writing the results")
    summary = {**experiments.summarize(curves), "policies": policies, "seconds": round(time.monotonic() - started, 1)}
    replace_file(folder / "curves.json", json.dumps(curves, indent=2))
    replace_file(folder / "summary.json", json.dumps(summary, indent=2))
    title = f"dial: {arguments.test_questions} fresh questions"
    report.plot_selection_curves(curves, folder / "best_of_n.png", title=title)
    page = report.write_report(folder, title=title)
    print(f"Done in {summary['seconds']:.0f} s. Numbers: {folder / 'summary.json'}. Plot: {folder / 'best_of_n.png'}.")
    print(f"Every solution with its step scores: {page}")
    print("With a real model: erprm collect --recipe qwen2.5-math-1.5b-gsm8k")
    return summary


def format_policy_table(policies: dict[str, dict[str, float]], eta: float) -> str:
    """
    The accuracy of each policy, one per line.

    Args:
        policies (`dict`):
            From [`~erprm_trl.dial.experiments.compare_policies`].
        eta (`float`):
            Eta of the reward model.
    """
    title = f"policy, trained on the step scores of eta = {eta:g} alone"
    lines = [f"{title:<52}pass@1"]
    for name, point in policies.items():
        lines.append(f"{POLICIES[name]:<52}{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]")
    return "\n".join(lines)
