"""Compares step scores, as probabilities, with the success of continuations of held-out prefixes.

erprm calibrate --recipe dial

The rollouts come from `erprm collect`, on questions that no model was trained on, with many continuations. Without
continuations, and for solutions from elsewhere (--solutions), the scores of whole solutions are compared with their
rewards.
"""

import json
from dataclasses import dataclass, field

from .. import report, selection
from ..io.atomic_files import make_folder, replace_file
from ..io.paths import local_paths
from ..io.redaction import without_login
from ..reward_model import scoring
from .candidates import SolutionArguments, open_samples
from .outcome import print_outcome
from .scoring import SCORING_BACKEND, TRAINED_ETA, load_scorer


@dataclass(kw_only=True)
class CalibrationArguments(SolutionArguments):
    """The rollouts, the reward models, and what a score should be."""

    rollouts: str | None = field(
        default=None, metadata={"help": "Rollout folder of held-out questions, with continuations."}
    )
    reward_models: list[str] = field(
        metadata={"help": "Reward models to compare: folders, Hub ids, scoring servers or scorer files."}
    )
    output_dir: str = field(metadata={"help": "Folder for the scores, the results and the plot."})
    eta: float = field(
        default=0.0,
        metadata={
            "help": "Eta of the values that scores are compared with. Scores of models that were trained at another "
            "eta are read at this eta if their format records the eta of their labels."
        },
    )
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    aggregation: str = field(
        default="last",
        metadata={"help": "How the step scores of a prefix become its score: last, min, product or mean."},
    )
    num_bins: int = field(default=10, metadata={"help": "Number of bins of the scores."})
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})


def main(arguments: CalibrationArguments) -> dict:
    """Scores, measures, prints and plots."""
    folder = make_folder(arguments.output_dir)
    reward_models = local_paths("reward_models", arguments.reward_models)
    rollouts = open_samples(arguments, "rollouts", folder, reward_models)
    scores = {}
    options = {"trained_eta": arguments.trained_eta, "backend": arguments.scoring_backend}
    for path in reward_models:
        scorer, name = load_scorer(path, arguments.batch_size, **options), without_login(path)
        readable = scoring.eta_or_as_trained(scorer.prm_format, arguments.eta, name)
        scores[name] = selection.score_rollouts(scorer, rollouts, eta=readable)
    results = {
        name: selection.measure_calibration(
            rollouts, step_scores, eta=arguments.eta, aggregation=arguments.aggregation, num_bins=arguments.num_bins
        )
        for name, step_scores in scores.items()
    }
    replace_file(folder / "step_scores.json", json.dumps(scores))
    replace_file(folder / "calibration.json", json.dumps(results, indent=2))
    report.draw_calibration(results).savefig(folder / "calibration.png", dpi=150)
    print_outcome(
        report.format_calibration_table(results),
        f"\nResults: {folder / 'calibration.json'}. Plot: {folder / 'calibration.png'}.",
        next_command=f"erprm report --folder {arguments.output_dir}",
    )
    return results
