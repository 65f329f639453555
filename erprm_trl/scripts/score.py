"""Scores the steps of solutions in a file or dataset, with any reward model.

erprm score --reward_model outputs/dial/erprm --dataset_name solutions.jsonl --output_dir outputs/scores

A row has a question (`question`, `problem` or `prompt`) and a solution: a list of steps (`steps` or `completions`), or
a text (`response`, `completion`, `solution`, ...), which the reward model's format splits into steps. `scores.jsonl`
in output_dir has the same rows, with `steps`, `step_scores` and `score`. After a kill, the same command continues.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import selection
from ..io.config_values import is_url, read_json_fields
from ..io.counts import counted
from ..io.progress_bars import progress_bar
from ..io.redaction import without_login
from ..rollouts.row_sources import read_rows
from .outcome import print_outcome
from .scoring import ETA, SCORING_BACKEND, TRAINED_ETA, scoring_speed


@dataclass
class ScoreArguments:
    """The reward model and the solutions."""

    reward_model: str = field(metadata={"help": "Folder, Hub id, scoring server or scorer file of the reward model."})
    dataset_name: str = field(
        metadata={
            "help": "Source of the solutions: a Hub id, a .jsonl, .json, .csv or .parquet file, a folder, or "
            "package.module:function."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for scores.jsonl."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments of datasets.load_dataset or of the function."}
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the question. Defaults to the first column with a usual name."}
    )
    solution_column: str | None = field(
        default=None,
        metadata={"help": "Column of the solution or its steps. Defaults to the first column with a usual name."},
    )
    prm_format: str | None = field(
        default=None, metadata={"help": "Preset of a public reward model, such as qwen2.5-math-prm."}
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How step scores become one score per solution. Defaults to the reward model's aggregation.",
            "choices": ["min", "last", "product", "mean"],
        },
    )
    eta: float | None = field(default=None, metadata=ETA)
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})
    chunk_size: int = field(
        default=256, metadata={"help": "Number of solutions per chunk. Results are written after each chunk."}
    )
    dtype: str = field(default="auto", metadata={"help": "Dtype of the model's weights."})
    device_map: str | None = field(default=None, metadata={"help": "auto places the model on several GPUs."})

    def __post_init__(self):
        read_json_fields(self, "dataset_kwargs")


def main(arguments: ScoreArguments) -> Path:
    """Scores the solutions that are not scored yet, and says how many there are."""
    rows = read_rows(
        arguments.dataset_name, arguments.dataset_config, arguments.dataset_split, arguments.dataset_kwargs or {}
    )
    options = {name: getattr(arguments, name) for name in ("prm_format", "batch_size", "eta", "trained_eta")}
    options["backend"] = arguments.scoring_backend
    if not is_url(arguments.reward_model):  # a server has its own
        options |= {"dtype": arguments.dtype, "device_map": arguments.device_map}
    chunks: list[tuple[int, float]] = []
    scored = selection.score_rows(
        arguments.reward_model,
        rows,
        arguments.output_dir,
        question_column=arguments.question_column,
        solution_column=arguments.solution_column,
        aggregation=arguments.aggregation,
        chunk_size=arguments.chunk_size,
        on_chunk=lambda *chunk: chunks.append(chunk),
        **options,
    )
    scores: list[float | None] = []
    num_steps = 0
    with progress_bar(len(rows) if hasattr(rows, "__len__") else None, "Scoring", unit="solutions") as bar:
        for row in scored:
            scores.append(row["score"])
            bar.update()
            num_steps += len(row["step_scores"] or ())
    present = [score for score in scores if score is not None]
    path = Path(arguments.output_dir, "scores.jsonl")
    mean = f" The mean score is {sum(present) / len(present):.3g}." if present else ""
    scored_of = f"{len(present):,} of {counted(len(scores), 'solution')}"
    lines = [f"{without_login(arguments.reward_model)} scored {scored_of} ({counted(num_steps, 'step')}).{mean}"]
    if len(present) < len(scores):
        unscored = counted(len(scores) - len(present), "solution has", "solutions have")
        lines.append(f"{unscored} no steps, or more tokens than the model's context.")
    if chunks:  # otherwise an earlier run has scored everything
        lines.append(f"This run scored {scoring_speed(*map(sum, zip(*chunks, strict=True)))}.")
    print_outcome(*lines, f"Scores: {path}.")
    return path
