"""Tests whether the first step that a reward model scores low is where a solution goes wrong, as ProcessBench does.

erprm processbench --recipe dial

Other judged solutions are read with the names of their columns. They may have one label per step. After a
kill, the same command continues with the scores that it has written.
"""

import json
import re
from dataclasses import dataclass, field

from .. import report, selection
from ..io.atomic_files import make_folder, replace_file
from ..io.paths import local_paths
from ..io.redaction import without_login
from .outcome import print_outcome
from .scoring import ETA, SCORING_BACKEND, TRAINED_ETA


@dataclass
class ProcessBenchArguments:
    """The judged solutions and the reward models. Give a threshold, or a way to hold out solutions."""

    reward_models: list[str] = field(
        metadata={"help": "Reward models to compare: folders, Hub ids, scoring servers or scorer files."}
    )
    output_dir: str = field(metadata={"help": "Folder for the scores and the results."})
    dataset: str = field(
        default="Qwen/ProcessBench",
        metadata={"help": "Source of the judged solutions: a Hub id, a file, a folder of files, or a saved dataset."},
    )
    problem_column: str = field(default="problem", metadata={"help": "Column of the question."})
    steps_column: str = field(default="steps", metadata={"help": "Column of the steps, or of the solution's text."})
    label_column: str = field(
        default="label",
        metadata={"help": "Column of the index of the first wrong step (-1 if there is none), or of labels per step."},
    )
    splitter: str | None = field(
        default=None, metadata={"help": "Splitter of solutions that are texts. Not needed for lists of steps."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets to test on. Defaults to all subsets."})
    threshold: float | None = field(
        default=None, metadata={"help": "Steps with a score below the threshold are predicted to be wrong."}
    )
    validation_subsets: list[str] | None = field(
        default=None, metadata={"help": "Subsets to choose the thresholds on. They are not tested on."}
    )
    validation_share: float | None = field(
        default=None, metadata={"help": "Share of the problems of all subsets to choose the thresholds on."}
    )
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Source of another dataset to choose the thresholds on."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the validation share."})
    eta: float | None = field(default=None, metadata=ETA)
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})


def main(arguments: ProcessBenchArguments) -> dict:
    """Scores, evaluates, prints and writes `processbench.json`."""
    reward_models = local_paths("reward_models", arguments.reward_models)
    columns = {
        "problem_column": arguments.problem_column,
        "steps_column": arguments.steps_column,
        "label_column": arguments.label_column,
        "splitter": arguments.splitter,
    }
    other = arguments.validation_dataset
    test, validation, record = selection.hold_out(
        selection.load_processbench(arguments.dataset, arguments.subsets, **columns),
        subsets=arguments.validation_subsets,
        share=arguments.validation_share,
        other=selection.load_processbench(other, **columns) if other else None,
        seed=arguments.seed,
    )
    solutions = [*validation, *(solution for subset in test.values() for solution in subset)]
    folder = make_folder(arguments.output_dir)
    scores = {}
    for path in reward_models:
        name = without_login(path)
        # Scores at another eta are in another folder, so that a table at several etas keeps all of them.
        at_eta = "" if arguments.eta is None else f"_eta_{arguments.eta:g}"
        place = folder / "scores" / (re.sub(r"[^\w.-]+", "_", name) + at_eta)
        scoring = {"eta": arguments.eta, "trained_eta": arguments.trained_eta, "backend": arguments.scoring_backend}
        scores[name] = selection.score_judged(path, solutions, place, batch_size=arguments.batch_size, **scoring)
    results = selection.evaluate_processbench(test, scores, threshold=arguments.threshold, validation=validation)
    written = {"dataset": arguments.dataset, "validation": record, "models": results}
    replace_file(folder / "processbench.json", json.dumps(written, indent=2))
    chosen = f"chosen on {record['solutions']} held-out solutions (by {record['by']})" if validation else "given"
    print_outcome(
        report.format_processbench_table(results),
        f"\nThresholds: {chosen}. Results: {folder / 'processbench.json'}.",
        next_command=f"erprm report --folder {arguments.output_dir}",
    )
    return written
