"""Does the first step that a reward model scores low tell where a solution goes wrong? ProcessBench's protocol.

    python recipes/processbench.py --config recipes/dial/processbench.yaml

Killed at any moment, the same command continues with the scores that it has written.
"""

import json
import re
from dataclasses import dataclass, field

from trl import TrlParser

from erprm_trl import report, selection
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.io.paths import local_paths
from erprm_trl.io.redaction import without_login


@dataclass
class ProcessBenchArguments:
    """Arguments of an evaluation: one threshold, or one way to hold out solutions that each model's is chosen on."""

    reward_models: list[str] = field(
        metadata={"help": "Folders or Hub ids of reward models, or addresses of scoring servers."}
    )
    output_dir: str = field(metadata={"help": "Where the scores and the numbers go."})
    dataset: str = field(
        default="Qwen/ProcessBench", metadata={"help": "Hub id, file, folder of files, or saved dataset."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Which subsets; all by default."})
    threshold: float | None = field(default=None, metadata={"help": "A step scored below it is called wrong."})
    validation_subsets: list[str] | None = field(
        default=None, metadata={"help": "Subsets to choose thresholds on; they are not tested then."}
    )
    validation_share: float | None = field(
        default=None, metadata={"help": "Share of all subsets' problems to choose thresholds on."}
    )
    validation_dataset: str | None = field(default=None, metadata={"help": "Another dataset to choose thresholds on."})
    seed: int = field(default=0, metadata={"help": "Seed of the share."})
    batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})


def main(arguments: ProcessBenchArguments) -> dict:
    """Scores, evaluates, prints and writes `processbench.json`."""
    test, validation, record = selection.hold_out(
        selection.load_processbench(arguments.dataset, arguments.subsets),
        subsets=arguments.validation_subsets,
        share=arguments.validation_share,
        other=selection.load_processbench(arguments.validation_dataset) if arguments.validation_dataset else None,
        seed=arguments.seed,
    )
    solutions = [*validation, *(solution for some in test.values() for solution in some)]
    folder = make_folder(arguments.output_dir)
    scores = {}
    for path in local_paths("reward_models", arguments.reward_models):
        name = without_login(path)
        place = folder / "scores" / re.sub(r"[^\w.-]+", "_", name)
        scores[name] = selection.score_judged(path, solutions, place, batch_size=arguments.batch_size)
    results = selection.evaluate_processbench(test, scores, threshold=arguments.threshold, validation=validation)
    written = {"dataset": arguments.dataset, "validation": record, "models": results}
    replace_file(folder / "processbench.json", json.dumps(written, indent=2))
    print(report.format_processbench_table(results))
    chosen = f"chosen on {record['solutions']} held-out solutions (by {record['by']})" if validation else "given"
    print(f"\nThresholds: {chosen}. Numbers: {folder / 'processbench.json'}")
    return written


if __name__ == "__main__":
    main(TrlParser(ProcessBenchArguments).parse_args_and_config()[0])
