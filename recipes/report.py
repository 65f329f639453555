"""Writes one HTML file about a run: solutions with the scores of their steps, curves, manifests.

    python recipes/report.py --folder outputs/quickstart

Any folder that a recipe has written serves, or one that holds such folders.
"""

from dataclasses import dataclass, field

from trl import TrlParser

import erprm_trl
from erprm_trl import report
from erprm_trl.io.paths import local_paths
from erprm_trl.io.redaction import without_login


@dataclass
class ReportArguments:
    """Arguments of a page."""

    folder: str = field(metadata={"help": "A run's folder; four levels below it are searched."})
    path: str | None = field(default=None, metadata={"help": "The page; report.html in the folder by default."})
    eta: float = field(default=2.0, metadata={"help": "Of the labels, where there are continuations."})
    aggregation: str = field(default="min", metadata={"help": "Shown first: min, last, product or mean."})
    max_solutions: int = field(default=1000, metadata={"help": "Solutions in the page: whole questions."})
    title: str | None = field(default=None, metadata={"help": "The folder's name by default."})
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Also score the page's solutions: folders, Hub ids or scoring servers."}
    )
    batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})


def main(arguments: ReportArguments):
    """Scores if asked to, writes the page and prints where it is."""
    scorers = {
        without_login(path): erprm_trl.StepScorer.from_pretrained(path, batch_size=arguments.batch_size)
        for path in local_paths("reward_models", arguments.reward_models or ())
    }
    page = report.write_report(
        arguments.folder,
        arguments.path,
        eta=arguments.eta,
        aggregation=arguments.aggregation,
        max_solutions=arguments.max_solutions,
        reward_models=scorers,
        title=arguments.title,
    )
    print(f"The page: {page}")
    return page


if __name__ == "__main__":
    main(TrlParser(ReportArguments).parse_args_and_config()[0])
