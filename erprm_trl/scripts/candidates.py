"""Options for solutions that were made elsewhere, for the commands that evaluate."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import erprm_trl

from .. import selection
from ..io.config_values import read_json_fields
from ..io.paths import local_path
from ..reward_model import scoring


logger = logging.getLogger(__name__)

FOLDER = "candidates"


@dataclass
class SolutionArguments:
    """Solutions that were made elsewhere, instead of a rollout folder."""

    solutions: str | None = field(
        default=None,
        metadata={
            "help": "Source of solutions that were made elsewhere: a Hub id, a file, a folder, or "
            "package.module:function. A row has a question, and one solution or a list of solutions."
        },
    )
    solutions_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    solutions_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    solutions_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments of datasets.load_dataset or of the function."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Number of rows to read, from the start."})
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the question. Defaults to the first column with a usual name."}
    )
    answer_column: str | None = field(default=None, metadata={"help": "Column of the reference answer."})
    solution_column: str | None = field(
        default=None, metadata={"help": "Column of the solution's text, or of a list of texts."}
    )
    steps_column: str | None = field(
        default=None, metadata={"help": "Column of the solution's steps, or of a list of solutions with steps."}
    )
    correct_column: str | None = field(
        default=None, metadata={"help": "Column that says whether a solution is correct. Other solutions are graded."}
    )
    splitter: str | None = field(
        default=None,
        metadata={"help": "Splitter of solutions that are texts. Defaults to the splitter of the first reward model."},
    )
    grading: str | None = field(
        default=None,
        metadata={
            "help": "How solutions are graded: math, exact, stated or package.module:function. Defaults to stated if "
            "the correctness of every solution is known, else to math."
        },
    )
    answer_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose group 1 is the final answer of a solution."}
    )

    def __post_init__(self):
        read_json_fields(self, "solutions_kwargs")


def open_samples(
    arguments: SolutionArguments, option: str, folder: Path, reward_models: list[str]
) -> "erprm_trl.RolloutDataset":
    """
    Opens a rollout folder, or grades solutions that were made elsewhere.

    Args:
        arguments ([`SolutionArguments`]):
            Options of the command.
        option (`str`):
            Name of the option for a rollout folder.
        folder (`Path`):
            Folder of the results. Solutions are written into its subfolder `candidates`.
        reward_models (`list[str]`):
            Reward models. The first decides on the splitter.

    Raises:
        `ValueError`: unless exactly one of the two sources is set.
    """
    path = getattr(arguments, option)
    if (path is None) == (arguments.solutions is None):
        raise ValueError(
            f"Samples: got {option}={path!r} and solutions={arguments.solutions!r}, expected exactly one of them. "
            f"Pass --{option} FOLDER for rollouts of this package, or --solutions FILE for solutions from elsewhere."
        )
    if path is not None:
        return erprm_trl.RolloutDataset(path)
    return selection.collect_candidates(
        local_path(arguments.solutions),
        folder / FOLDER,
        config_name=arguments.solutions_config,
        split=arguments.solutions_split,
        dataset_kwargs=arguments.solutions_kwargs,
        max_rows=arguments.max_rows,
        splitter=arguments.splitter or splitter_of(reward_models),
        grading=arguments.grading,
        answer_pattern=arguments.answer_pattern,
        question_column=arguments.question_column,
        answer_column=arguments.answer_column,
        solution_column=arguments.solution_column,
        steps_column=arguments.steps_column,
        correct_column=arguments.correct_column,
    )


def splitter_of(reward_models: list[str]) -> str:
    """
    The splitter of the first reward model, for solutions that are texts. Other reward models with another splitter are
    named in a warning.

    Args:
        reward_models (`list[str]`):
            Folders, Hub ids, addresses or scorer files. A scorer file decides only if there is nothing else, because
            its scorer reads the steps of any splitter.
    """
    models = [name for name in reward_models if not name.endswith((".yaml", ".yml"))] or reward_models
    splitters = {name: scoring.load_format(name).splitter for name in models}
    splitter = next(iter(splitters.values()), "newline")
    if len(set(splitters.values())) > 1:
        logger.warning(
            "The reward models have different splitters (%s). Solutions that are texts are split by %r for all of "
            "them. Choose another with --splitter.", splitters, splitter,
        )  # fmt: skip
    return splitter
