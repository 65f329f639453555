"""The chain on the embedded task: rollouts, labels at several eta, reward models, a better pick, better policies.

make quickstart
"""

import json
import os
import time
from dataclasses import dataclass, field


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the chain needs nothing from outside

from trl import TrlParser

import erprm_trl
from erprm_trl import report
from erprm_trl.io.atomic_files import make_folder, replace_file


@dataclass
class QuickstartArguments:
    """Sizes of the chain; the defaults are those of recipes/dial/quickstart.yaml."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where everything goes."})
    train_questions: int = field(default=400, metadata={"help": "Questions with rollouts."})
    num_solutions: int = field(default=2, metadata={"help": "Solutions of each."})
    num_continuations: int = field(default=8, metadata={"help": "K, continuations a prefix."})
    test_questions: int = field(default=200, metadata={"help": "Fresh questions to choose answers for."})
    num_samples: int = field(default=16, metadata={"help": "Solutions to choose from."})
    etas: list[float] = field(
        default_factory=lambda: [0.0, 2.0, 8.0, float("inf")], metadata={"help": "One model each."}
    )
    max_steps: int = field(default=100, metadata={"help": "Training steps of each model."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Of each model."})
    seed: int = field(default=0, metadata={"help": "Seed of the training questions, the rollouts and the models."})
    updates: int = field(default=20, metadata={"help": "Updates of step GRPO and step PPO, 256 completions each."})
    rounds: int = field(default=2, metadata={"help": "Rounds of RAFT."})
    questions_per_round: int = field(default=300, metadata={"help": "Questions of a round, 8 samples each."})


def main(arguments: QuickstartArguments) -> dict:
    """Runs the chain, prints the comparison and writes `summary.json` and `best_of_n.png`."""
    from erprm_trl.dial.experiments.chain import DialChain, summarize
    from erprm_trl.dial.experiments.policies import compare_policies

    started = time.monotonic()
    folder = make_folder(arguments.output_dir)
    policy_fields = {"updates", "rounds", "questions_per_round"}
    chain = DialChain(**{name: value for name, value in vars(arguments).items() if name not in policy_fields})
    curves = chain.run()
    print(report.format_selection_table(curves, arguments.num_samples))
    eta = min(arguments.etas, key=lambda value: abs(value - 2.0))
    policies = compare_policies(
        erprm_trl.StepScorer.from_pretrained(folder / f"erprm-eta-{eta:g}", batch_size=256),
        folder / "policies",
        arguments.test_questions,
        seed=arguments.seed,
        **{name: getattr(arguments, name) for name in policy_fields},
    )
    seconds = round(time.monotonic() - started, 1)
    summary = {**summarize(curves), "policies": policies, "seconds": seconds}
    replace_file(folder / "curves.json", json.dumps(curves, indent=2))
    replace_file(folder / "summary.json", json.dumps(summary, indent=2))
    title = f"dial: {arguments.test_questions} fresh questions"
    report.plot_selection_curves(curves, folder / "best_of_n.png", title=title)
    print(f"\npolicy, trained on the step scores of eta = {eta:g} alone     pass@1")
    for name, point in policies.items():
        print(f"{name:<52}{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]")
    print(f"\n{summary['seconds']:.0f} s. Numbers: {folder / 'summary.json'}  plot: {folder / 'best_of_n.png'}")
    print(f"To look at every solution and step: {report.write_report(folder, title=title)}")
    print("With a real model: recipes/README.md, starting at recipes/qwen2.5-math-1.5b-gsm8k/collect.yaml")
    return summary


if __name__ == "__main__":
    main(TrlParser(QuickstartArguments).parse_args_and_config()[0])
