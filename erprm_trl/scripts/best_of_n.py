"""Scores sampled solutions with reward models, and compares ways to choose among them.

erprm best-of-n --recipe dial

The samples come from `erprm collect` with num_continuations: 0, or with --solutions from any file of solutions, which
are graded first. Rollouts with continuations can be used as well.
"""

import json
import logging
import os
from dataclasses import dataclass, field

from .. import report, rollouts, selection
from ..io.atomic_files import make_folder, replace_file
from ..io.paths import local_paths
from ..rollouts.grading.grader import comparison_method
from ..training import tracking
from .candidates import SolutionArguments, open_samples
from .outcome import print_outcome
from .scoring import SCORING_BACKEND, TRAINED_ETA, score_with_each


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BestOfNArguments(SolutionArguments):
    """The samples and the reward models."""

    samples: str | None = field(default=None, metadata={"help": "Rollout folder with several solutions per question."})
    reward_models: list[str] = field(
        metadata={"help": "Reward models to compare: folders, Hub ids, scoring servers or scorer files."}
    )
    output_dir: str = field(metadata={"help": "Folder for the scores, the results and the plot."})
    ns: list[int] | None = field(
        default=None, metadata={"help": "Numbers of samples to choose from. Defaults to powers of two."}
    )
    eta: list[float] | None = field(
        default=None,
        metadata={
            "help": "Etas at which the scores are read. Each is a line of the table. Defaults to the scores as the "
            "models give them."
        },
    )
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})
    plot_aggregation: str = field(
        default="min", metadata={"help": "Aggregation of step scores in the plot: min, last, product or mean."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: wandb, trackio, tensorboard, or none."}
    )

    def __post_init__(self):
        if isinstance(self.eta, (int, float)):
            self.eta = [self.eta]


def main(arguments: BestOfNArguments) -> dict:
    """Scores, compares, prints and plots."""
    folder = make_folder(arguments.output_dir)
    samples = open_samples(arguments, "samples", folder, local_paths("reward_models", arguments.reward_models))
    ns = arguments.ns or _usual_ns([len(solutions) for solutions in samples.solutions()])
    models = local_paths("reward_models", arguments.reward_models)
    options = {"trained_eta": arguments.trained_eta, "backend": arguments.scoring_backend}
    scores = score_with_each(models, samples, arguments.batch_size, arguments.eta or (), **options)
    settings = samples.settings
    with rollouts.Grader(comparison_method(settings.grading), settings.answer_pattern) as grader:
        curves = selection.selection_curves(samples.solutions(), scores, ns, equivalent=grader.equivalent)
    replace_file(folder / "step_scores.json", json.dumps(scores))
    comparison = {**curves, "samples": os.path.relpath(samples.path, folder)}  # the page shows the samples too
    replace_file(folder / "best_of_n.json", json.dumps(comparison, indent=2))
    report.plot_selection_curves(curves, folder / "best_of_n.png", aggregation=arguments.plot_aggregation)
    _track(arguments, curves, folder)
    tables = [report.format_selection_table(curves, max(ns))]
    if len(scores) > 1:
        differences = selection.paired_differences(samples.solutions(), scores, ns)
        replace_file(folder / "paired_differences.json", json.dumps(differences, indent=2))
        tables.append(f"\n{report.format_difference_table(differences, max(ns))}")
    print_outcome(
        *tables,
        f"\nResults: {folder / 'best_of_n.json'}. Plot: {folder / 'best_of_n.png'}.",
        next_command=f"erprm report --folder {arguments.output_dir}",
    )
    return curves


def _usual_ns(sizes: list[int]) -> list[int]:
    """Powers of two up to the smallest number of solutions to a question."""
    fewest = min(sizes)
    if fewest < max(sizes):
        logger.warning(
            "%d of %d questions have only %d solutions, and others have up to %d. Best-of-n needs n solutions to "
            "every question, so n is at most %d. Leave these questions out to compare larger n.",
            sizes.count(fewest), len(sizes), fewest, max(sizes), fewest,
        )  # fmt: skip
    return [2**power for power in range(fewest.bit_length()) if 2**power <= fewest]


def _track(arguments: BestOfNArguments, curves: dict, folder) -> None:
    names = tracking.redacted(list(curves["models"]))
    names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, start=1)]
    shown = {**curves, "models": dict(zip(names, curves["models"].values(), strict=True))}
    with tracking.Trackers.start(arguments.report_to, folder, vars(arguments)) as trackers:
        by = arguments.plot_aggregation
        trackers.figure(f"best_of_n/{by}", lambda: report.draw_selection_curves(shown, aggregation=by), step=0)
        columns, rows = report.selection_rows(shown)
        trackers.table("best_of_n/curves", lambda: (columns, rows), step=0)
        for n in sorted({row[1] for row in rows}):  # n takes the place of the step, so that trackers draw the curves
            trackers.scalars({f"best_of_n/{row[0]}": row[2] for row in rows if row[1] == n}, step=n)
