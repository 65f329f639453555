"""Scores sampled solutions with reward models and compares ways to choose among them.

    python recipes/best_of_n.py --config recipes/dial/best_of_n.yaml

Samples come from collect_rollouts.py with num_continuations: 0 (rollouts with continuations serve as well).
"""

import json
import os
from dataclasses import dataclass, field

from trl import TrlParser

import erprm_trl
from erprm_trl import report, rollouts, selection
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.io.paths import local_paths
from erprm_trl.io.redaction import without_login
from erprm_trl.training import tracking


@dataclass
class BestOfNArguments:
    """Arguments of a comparison."""

    samples: str = field(metadata={"help": "Folder of collect_rollouts.py with several solutions a question."})
    reward_models: list[str] = field(
        metadata={"help": "Folders or Hub ids of reward models, or addresses of scoring servers."}
    )
    output_dir: str = field(metadata={"help": "Where the scores, the numbers and the plot go."})
    ns: list[int] | None = field(default=None, metadata={"help": "Numbers of samples; powers of two by default."})
    batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})
    plot_aggregation: str = field(default="min", metadata={"help": "min, last, product or mean."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "wandb, trackio, tensorboard; none by default."}
    )


def main(arguments: BestOfNArguments) -> dict:
    """Scores, compares, prints and plots."""
    samples = erprm_trl.RolloutDataset(arguments.samples)
    folder = make_folder(arguments.output_dir)
    fewest = min(map(len, samples.solutions()))
    ns = arguments.ns or [2**power for power in range(fewest.bit_length()) if 2**power <= fewest]
    scores = {
        without_login(path): selection.score_rollouts(
            erprm_trl.StepScorer.from_pretrained(path, batch_size=arguments.batch_size), samples
        )
        for path in local_paths("reward_models", arguments.reward_models)
    }
    settings = samples.settings
    with rollouts.Grader(settings.grading, answer_pattern=settings.answer_pattern) as grader:
        curves = selection.selection_curves(samples.solutions(), scores, ns, equivalent=grader.equivalent)
    replace_file(folder / "step_scores.json", json.dumps(scores))
    comparison = {**curves, "samples": os.path.relpath(samples.path, folder)}  # the page shows them too
    replace_file(folder / "best_of_n.json", json.dumps(comparison, indent=2))
    report.plot_selection_curves(curves, folder / "best_of_n.png", aggregation=arguments.plot_aggregation)
    names = tracking.redacted(list(curves["models"]))
    names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, start=1)]
    shown = {**curves, "models": dict(zip(names, curves["models"].values(), strict=True))}
    with tracking.Trackers.start(arguments.report_to, folder, vars(arguments)) as trackers:
        by = arguments.plot_aggregation
        trackers.figure(f"best_of_n/{by}", lambda: report.draw_selection_curves(shown, aggregation=by), step=0)
        table = report.selection_rows(shown)
        trackers.table("best_of_n/curves", lambda: table, step=0)
        for n in ns:  # n as the step: the curves again, to look at closely
            points = {f"best_of_n/{row[0]}": row[2] for row in table[1] if row[1] == n}
            trackers.scalars(points, step=n)
    print(report.format_selection_table(curves, max(ns)))
    if len(scores) > 1:
        differences = selection.paired_differences(samples.solutions(), scores, ns)
        replace_file(folder / "paired_differences.json", json.dumps(differences, indent=2))
        print(f"\n{report.format_difference_table(differences, max(ns))}")
    print(f"Numbers and plot: {folder}")
    return curves


if __name__ == "__main__":
    main(TrlParser(BestOfNArguments).parse_args_and_config()[0])
