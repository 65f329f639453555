"""The ProcessBench protocol: does the first step scored below a threshold tell where a solution goes wrong? Judged
solutions are loaded, some are held out to choose the threshold, and models are evaluated on the rest."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...io.paths import local_path
from ...io.text_lists import check_texts
from .processbench_f1 import choose_threshold, first_error, paired_f1_difference, processbench_metrics


COLUMNS = ("id", "problem", "steps", "label")
_FILES = (".jsonl", ".json", ".parquet")


class JudgedSolution(NamedTuple):
    """
    A row of the benchmark: `id`, `problem`, its `steps`, and `label`, the index of the first wrong step from 0, or -1
    where every step is right.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int


def load_processbench(source: str | Path, subsets: Sequence[str] | None = None) -> dict[str, list[JudgedSolution]]:
    """
    Loads judged solutions in ProcessBench's columns.

    Args:
        source (`str` or `Path`):
            A dataset id on the Hub (each split is a subset, as in `"Qwen/ProcessBench"`); a `.jsonl`, `.json` or
            `.parquet` file (one subset, named after it); a folder of such files; a folder written by
            `save_to_disk`.
        subsets (`Sequence[str]`, *optional*):
            Which ones, in this order; all by default.

    Returns:
        `dict[str, list[JudgedSolution]]`: by subset. Columns other than `id`, `problem`, `steps` and `label` (such as
        `generator` and `final_answer_correct`) are not read.

    Raises:
        `ValueError`: for a subset that is not there or has no rows, a column that is missing, or a row that is no
            judged solution (subset, row and column are named).
    """
    if subsets is not None:
        check_texts("subsets", subsets)
    tables = _read_tables(local_path(source))
    unknown = [name for name in subsets or () if name not in tables]
    if unknown:
        raise ValueError(f"Subsets of {source}: got {unknown}, expected some of {sorted(tables)}.")
    return {name: _read_rows(tables[name], f"{source}, {name}") for name in subsets or tables}


def split_by_question(
    data: Mapping[str, Sequence[JudgedSolution]], validation_share: float, seed: int = 0
) -> tuple[dict[str, list[JudgedSolution]], dict[str, list[JudgedSolution]]]:
    """
    Splits judged solutions into validation and test by a hash of the problem: all solutions of a problem, in whatever
    subset, fall on the same side, and the same problem always on the same.

    Args:
        data (`Mapping[str, Sequence[JudgedSolution]]`):
            By subset.
        validation_share (`float`):
            Share of problems for validation, strictly between 0 and 1.
        seed (`int`, *optional*, defaults to `0`):
            Another seed gives another split.

    Returns:
        `tuple[dict, dict]`: validation and test, each by subset.
    """
    if not 0.0 < validation_share < 1.0:
        raise ValueError(f"`validation_share` is {validation_share}: expected a share strictly between 0 and 1.")
    limit = int(validation_share * 2**64)
    validation: dict[str, list[JudgedSolution]] = {name: [] for name in data}
    test: dict[str, list[JudgedSolution]] = {name: [] for name in data}
    for name, solutions in data.items():
        for solution in solutions:
            place = hashlib.sha256(f"{seed}:{_problem(solution)}".encode()).digest()[:8]
            side = validation if int.from_bytes(place, "big") < limit else test
            side[name].append(solution)
    return validation, test


def hold_out(
    data: Mapping[str, Sequence[JudgedSolution]],
    *,
    subsets: Sequence[str] | None = None,
    share: float | None = None,
    other: Mapping[str, Sequence[JudgedSolution]] | None = None,
    seed: int = 0,
) -> tuple[dict[str, list[JudgedSolution]], list[JudgedSolution], dict[str, Any]]:
    """
    Sets validation solutions aside, to choose a threshold on: at most one way of three. No problem is on both sides.

    Args:
        data (`Mapping[str, Sequence[JudgedSolution]]`):
            From [`load_processbench`].
        subsets (`Sequence[str]`, *optional*):
            Subsets of `data` that become validation, and are then not tested.
        share (`float`, *optional*):
            A share of the problems of every subset, by [`split_by_question`].
        other (`Mapping`, *optional*):
            Another set of judged solutions.
        seed (`int`, *optional*, defaults to `0`):
            Of the share.

    Returns:
        `tuple[dict, list, dict]`: test solutions by subset, validation solutions (none if no way is given), and a
        record of how many there are and how many validation solutions were left out because their problem is tested.

    Raises:
        `ValueError`: for two ways at once, an unknown subset, or when nothing is left on a side.
    """
    ways = [name for name, way in (("subsets", subsets), ("share", share), ("other", other)) if way is not None]
    if len(ways) > 1:
        raise ValueError(f"Validation: got {' and '.join(ways)}, expected one way at most. Choose one.")
    test = {name: list(solutions) for name, solutions in data.items()}
    validation: dict[str, Sequence[JudgedSolution]] = {}
    if subsets is not None:
        check_texts("subsets", subsets)
        unknown = [name for name in subsets if name not in test]
        if unknown:
            raise ValueError(f"Validation subsets: got {unknown}, expected some of {sorted(test)}.")
        validation = {name: test.pop(name) for name in subsets}
    elif share is not None:
        test, validation = split_by_question(data, share, seed)[::-1]
    elif other is not None:
        validation = dict(other)
    tested = {_problem(solution) for solutions in test.values() for solution in solutions}
    candidates = [solution for solutions in validation.values() for solution in solutions]
    kept = [solution for solution in candidates if _problem(solution) not in tested]
    if not tested or (ways and not kept):
        raise ValueError(
            f"Validation by {ways[0] if ways else 'nothing'}: got {len(kept)} validation and "
            f"{sum(map(len, test.values()))} test solutions, expected some of both. Change it."
        )
    record = {
        "by": ways[0] if ways else None,
        **({"share": share, "seed": seed} if share is not None else {}),
        "subsets": sorted(validation),
        "solutions": len(kept),
        "problems": len({_problem(solution) for solution in kept}),
        "left_out_as_tested": len(candidates) - len(kept),
    }
    return test, kept, record


def evaluate_processbench(
    test: Mapping[str, Sequence[JudgedSolution]],
    scores: Mapping[str, Mapping[JudgedSolution, Sequence[float]]],
    *,
    threshold: float | None = None,
    validation: Sequence[JudgedSolution] = (),
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Runs the protocol for every model.

    Args:
        test (`Mapping[str, Sequence[JudgedSolution]]`):
            By subset.
        scores (`Mapping[str, Mapping]`):
            By name of a reward model: step scores of every test and validation solution, from [`score_judged`].
        threshold (`float`, *optional*):
            A step is called wrong if its score is below; for all models. Without it each model's own is chosen on
            `validation` by [`choose_threshold`].
        validation (`Sequence[JudgedSolution]`, *optional*):
            From [`hold_out`]; not with `threshold`.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the bootstrap intervals over solutions.

    Returns:
        `dict`: by name of a model `threshold`, `too_long` (test solutions that could not be scored and count as
        wrong), `subsets` and `average` as in [`processbench_metrics`], and, for all models but the first,
        `f1_minus_first`, the paired difference of average F1.

    Raises:
        `ValueError`: for a threshold and validation solutions at once, or neither.
    """
    if (threshold is None) == (not validation):
        raise ValueError(
            f"Threshold: got {threshold} and {len(validation)} validation solutions, expected one of the two. Give a "
            "threshold such as 0.5, or hold solutions out."
        )
    results: dict[str, Any] = {}
    labels = {name: [solution.label for solution in solutions] for name, solutions in test.items()}
    first = None
    for model, of_solution in scores.items():
        chosen = threshold
        if chosen is None:
            chosen = choose_threshold([of_solution[s] for s in validation], [s.label for s in validation])
        predictions = {
            name: [first_error(of_solution[s], chosen) if of_solution[s] else None for s in solutions]
            for name, solutions in test.items()
        }
        figures = processbench_metrics(predictions, labels, level=level)
        too_long = sum(prediction is None for subset in predictions.values() for prediction in subset)
        results[model] = {"threshold": chosen, "too_long": too_long}
        results[model] |= {key: figures[key] for key in ("average", "subsets")}
        if first is None:
            first = figures
        else:
            results[model]["f1_minus_first"] = paired_f1_difference(figures, first, level)
    return results


def _problem(solution: JudgedSolution) -> str:
    return solution.problem.strip()


def _read_tables(source: str) -> dict[str, Any]:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    path = Path(source)
    if path.suffix in _FILES or path.is_dir():
        files = [path] if path.suffix in _FILES else sorted(f for f in path.iterdir() if f.suffix in _FILES)
        is_saved = path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
        if not is_saved:
            missing = [str(file) for file in files if not file.is_file()]
            if missing or not files:
                raise ValueError(f"Judged solutions: no file at {(missing or [source])[0]!r}. Expected {_FILES}.")
            return {
                file.stem: (Dataset.from_parquet if file.suffix == ".parquet" else Dataset.from_json)(str(file))
                for file in files
            }
        loaded = load_from_disk(source)
    else:
        loaded = load_dataset(source)
    return dict(loaded) if isinstance(loaded, DatasetDict) else {path.name: loaded}


def _read_rows(table, name: str) -> list[JudgedSolution]:
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name}: got columns {sorted(table.column_names)}, expected {', '.join(COLUMNS)} as in ProcessBench; "
            f"{', '.join(missing)} is missing. Rename the columns that hold them."
        )
    if not len(table):
        raise ValueError(f"{name}: got no rows, expected at least one judged solution.")
    return [_judged(row, f"{name}, row {index}") for index, row in enumerate(table)]


def _judged(row: Mapping[str, Any], name: str) -> JudgedSolution:
    problem, steps, label = row["problem"], row["steps"], row["label"]
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{name}: column 'problem' got {problem!r}, expected a non-empty string. Drop the row.")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise ValueError(
            f"{name}: column 'steps' got {str(steps)[:80]!r}, expected a list of non-empty strings. Split the "
            "solution into steps, or drop the row."
        )
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise ValueError(
            f"{name}: column 'label' got {label!r} with {len(steps)} steps, expected the index of the first wrong "
            "step from 0, or -1. Count steps from 0."
        )
    return JudgedSolution(str(row["id"]), problem, tuple(steps), label)
