"""Writes one HTML file about a run: solutions with the scores of their steps, curves, settings.

erprm report --folder outputs/quickstart

The folder is the output of a stage, or contains such folders.
"""

from dataclasses import dataclass, field
from pathlib import Path

from .. import report
from ..io.paths import local_paths
from ..io.redaction import without_login
from .outcome import print_outcome
from .scoring import load_scorer


@dataclass
class ReportArguments:
    """The run and the page."""

    folder: str = field(metadata={"help": "Folder of a run. It is searched down to four levels below it."})
    path: str | None = field(default=None, metadata={"help": "File of the page. Default: report.html in the folder."})
    eta: float = field(default=2.0, metadata={"help": "Eta of the labels, where there are continuations."})
    aggregation: str = field(default="min", metadata={"help": "Shown first: min, last, product or mean."})
    max_solutions: int = field(
        default=1000, metadata={"help": "Maximum number of solutions. Questions are shown whole."}
    )
    title: str | None = field(default=None, metadata={"help": "Title of the page. Default: name of the folder."})
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Also score the page's solutions: folders, Hub ids or scoring servers."}
    )
    batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})


def main(arguments: ReportArguments) -> Path:
    """Scores if asked to, writes the page and prints where it is."""
    scorers = {
        without_login(path): load_scorer(path, arguments.batch_size)
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
    print_outcome(f"The page is in {page}. Open it in a browser.")
    return page
