"""Shows the noise of labels that can be seen without knowing which steps are right.

erprm inspect-labels --rollouts outputs/dial/rollouts --output_dir outputs/dial/label_noise

The rollouts come from `erprm collect`, with continuations.
"""

import json
from dataclasses import dataclass, field

import erprm_trl

from .. import report, rollouts
from ..io.atomic_files import make_folder, replace_file
from .outcome import print_outcome


@dataclass
class InspectLabelsArguments:
    """The rollouts, and the eta of their labels."""

    rollouts: str = field(metadata={"help": "Rollout folder with continuations."})
    output_dir: str = field(metadata={"help": "Folder for the results and the plot."})
    eta: float = field(default=2.0, metadata={"help": "Eta of the labels."})


def main(arguments: InspectLabelsArguments) -> dict:
    """Measures, prints and plots."""
    folder = make_folder(arguments.output_dir)
    noise = rollouts.measure_label_noise(erprm_trl.RolloutDataset(arguments.rollouts), arguments.eta)
    replace_file(folder / "label_noise.json", json.dumps(noise, indent=2))
    report.draw_label_noise(noise).savefig(folder / "label_noise.png", dpi=150)
    print_outcome(
        report.format_label_noise_table(noise),
        f"\nResults: {folder / 'label_noise.json'}. Plot: {folder / 'label_noise.png'}.",
        next_command=f"erprm train --rollouts {arguments.rollouts} --help  # options that make labels cleaner",
    )
    return noise
