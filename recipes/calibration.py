"""Are step scores right as probabilities? Compares them with what continuations of held-out prefixes earn.

    python recipes/calibration.py --config recipes/dial/calibration.yaml

Rollouts come from collect_rollouts.py on questions that no model was trained on, with many continuations.
"""

import json
from dataclasses import dataclass, field

from trl import TrlParser

import erprm_trl
from erprm_trl import report, selection
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.io.paths import local_paths
from erprm_trl.io.redaction import without_login


@dataclass
class CalibrationArguments:
    """Arguments of a look at scores as probabilities."""

    rollouts: str = field(metadata={"help": "Folder of collect_rollouts.py: held-out questions, continuations."})
    reward_models: list[str] = field(
        metadata={"help": "Folders or Hub ids of reward models, or addresses of scoring servers."}
    )
    output_dir: str = field(metadata={"help": "Where the scores, the numbers and the plot go."})
    eta: float = field(default=0.0, metadata={"help": "Which value the scores are to be: eta of the training."})
    aggregation: str = field(
        default="last", metadata={"help": "A prefix's score: its last step's, or min, product, mean of its steps."}
    )
    num_bins: int = field(default=10, metadata={"help": "Bins of the score."})
    batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})


def main(arguments: CalibrationArguments) -> dict:
    """Scores, measures, prints and plots."""
    rollouts = erprm_trl.RolloutDataset(arguments.rollouts)
    folder = make_folder(arguments.output_dir)
    scores = {
        without_login(path): selection.score_rollouts(
            erprm_trl.StepScorer.from_pretrained(path, batch_size=arguments.batch_size), rollouts
        )
        for path in local_paths("reward_models", arguments.reward_models)
    }
    results = {
        name: selection.measure_calibration(
            rollouts, step_scores, eta=arguments.eta, aggregation=arguments.aggregation, num_bins=arguments.num_bins
        )
        for name, step_scores in scores.items()
    }
    replace_file(folder / "step_scores.json", json.dumps(scores))
    replace_file(folder / "calibration.json", json.dumps(results, indent=2))
    report.draw_calibration(results).savefig(folder / "calibration.png", dpi=150)
    print(report.format_calibration_table(results))
    print(f"\nNumbers and plot: {folder}")
    return results


if __name__ == "__main__":
    main(TrlParser(CalibrationArguments).parse_args_and_config()[0])
