"""The ProcessBench protocol: predict the first wrong step of a solution as the first step scored below a threshold.

Judged solutions are loaded, some are held out to choose the threshold, and models are evaluated on the rest.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...io.paths import local_path
from ...io.text_lists import check_texts
from ...rollouts.row_sources import as_dataset, read_table
from ...steps import clean_steps, split_steps
from .processbench_f1 import choose_threshold, first_error, paired_f1_difference, processbench_metrics


_FILES = (".jsonl", ".json", ".parquet")


class _Columns(NamedTuple):
    """Columns of judged solutions, and the splitter of texts."""

    problem: str
    steps: str
    label: str
    splitter: str | None


class JudgedSolution(NamedTuple):
    """
    A row of the benchmark. `label` is the index of the first wrong step, counted from 0, or -1 if every step is right.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int


def load_processbench(
    source: str | Path,
    subsets: Sequence[str] | None = None,
    *,
    problem_column: str = "problem",
    steps_column: str = "steps",
    label_column: str = "label",
    splitter: str | None = None,
) -> dict[str, list[JudgedSolution]]:
    """
    Loads judged solutions, by default with ProcessBench's columns.

    Args:
        source (`str` or `Path`):
            A dataset id on the Hub (each split is a subset, as in `"Qwen/ProcessBench"`), a `.jsonl`, `.json` or
            `.parquet` file (one subset with the file's name), a folder of such files, or a folder written by
            `save_to_disk`.
        subsets (`Sequence[str]`, *optional*):
            Names of the subsets to load, in this order. Defaults to all subsets.
        problem_column (`str`, *optional*, defaults to `"problem"`):
            Column of the question.
        steps_column (`str`, *optional*, defaults to `"steps"`):
            Column of the steps, or of the text of the solution.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the index of the first wrong step (-1 if every step is right), or of one label per step. Labels
            per step are booleans, or numbers of which those below 0.5 belong to wrong steps.
        splitter (`str`, *optional*):
            Splitter of solutions that are texts, see [`~erprm_trl.PRMFormat`]. Without it, a text is an error.

    Returns:
        `dict[str, list[JudgedSolution]]`: the solutions by subset. `id` is the number of the row if there is no column
        `id`. Other columns (such as `generator` and `final_answer_correct`) are not read.

    Raises:
        `ValueError`: for a missing or empty subset, a missing column, or an invalid row (the message names the subset,
            the row and the column).
    """
    if subsets is not None:
        check_texts("subsets", subsets)
    tables = _read_tables(local_path(source))
    unknown = [name for name in subsets or () if name not in tables]
    if unknown:
        raise ValueError(f"Subsets of {source}: got {unknown}, expected names from {sorted(tables)}. Correct them.")
    columns = _Columns(problem_column, steps_column, label_column, splitter)
    return {name: _read_rows(tables[name], f"{source}, {name}", columns) for name in subsets or tables}


def split_by_question(
    data: Mapping[str, Sequence[JudgedSolution]], validation_share: float, seed: int = 0
) -> tuple[dict[str, list[JudgedSolution]], dict[str, list[JudgedSolution]]]:
    """
    Splits judged solutions into validation and test by a hash of the problem. All solutions of a problem are on the
    same side, also across subsets and runs.

    Args:
        data (`Mapping[str, Sequence[JudgedSolution]]`):
            Solutions by subset.
        validation_share (`float`):
            Fraction of the problems for validation, strictly between 0 and 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the hash. Different seeds give different splits.

    Returns:
        `tuple[dict, dict]`: the validation and the test solutions, each by subset.
    """
    if not 0.0 < validation_share < 1.0:
        raise ValueError(
            f"`validation_share` is {validation_share}, expected a fraction strictly between 0 and 1. Pass e.g. 0.2."
        )
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
    Holds out validation solutions to choose a threshold on. Set at most one of `subsets`, `share` and `other`. No
    problem is in both validation and test.

    Args:
        data (`Mapping[str, Sequence[JudgedSolution]]`):
            Solutions by subset, from [`load_processbench`].
        subsets (`Sequence[str]`, *optional*):
            Names of the subsets that are used for validation instead of the test.
        share (`float`, *optional*):
            Fraction of the problems of every subset that is used for validation, see [`split_by_question`].
        other (`Mapping`, *optional*):
            Validation solutions from another source, by subset.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split by `share`.

    Returns:
        `tuple[dict, list, dict]`: the test solutions by subset, the validation solutions (empty without `subsets`,
        `share` and `other`), and a record with their numbers. The record also counts the validation solutions that
        were dropped because their problem is tested.

    Raises:
        `ValueError`: if more than one of `subsets`, `share` and `other` is set, for an unknown subset, or if
            validation or test is empty.
    """
    ways = [name for name, way in (("subsets", subsets), ("share", share), ("other", other)) if way is not None]
    if len(ways) > 1:
        raise ValueError(f"Validation: got {' and '.join(ways)}, expected at most one of them. Choose one.")
    test = {name: list(solutions) for name, solutions in data.items()}
    validation: dict[str, Sequence[JudgedSolution]] = {}
    if subsets is not None:
        check_texts("subsets", subsets)
        unknown = [name for name in subsets if name not in test]
        if unknown:
            raise ValueError(f"Validation subsets: got {unknown}, expected names from {sorted(test)}. Correct them.")
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
            f"{sum(map(len, test.values()))} test solutions, expected at least one of each. Hold out other solutions."
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
    Runs the protocol for every reward model.

    Args:
        test (`Mapping[str, Sequence[JudgedSolution]]`):
            Test solutions by subset.
        scores (`Mapping[str, Mapping]`):
            Step scores of every test and validation solution from [`score_judged`], by name of a reward model.
        threshold (`float`, *optional*):
            Threshold for all models. A step counts as wrong if its score is below it. Defaults to a threshold per
            model, which [`choose_threshold`] finds on `validation`.
        validation (`Sequence[JudgedSolution]`, *optional*):
            Validation solutions from [`hold_out`]. They cannot be combined with `threshold`.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the bootstrap intervals over solutions.

    Returns:
        `dict`: by name of a model, `threshold`, `too_long` (the number of test solutions that could not be scored,
        which count as wrong), `subsets` and `average` as in [`processbench_metrics`], and, for all models but the
        first, `f1_minus_first` (the paired difference of average F1).

    Raises:
        `ValueError`: if both or neither of `threshold` and `validation` are set.
    """
    if (threshold is None) == (not validation):
        raise ValueError(
            f"Threshold: got {threshold} and {len(validation)} validation solutions, expected exactly one of the two. "
            "Set a threshold such as 0.5, or hold out validation solutions."
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
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(source)
    if path.suffix in _FILES or path.is_dir():
        files = [path] if path.suffix in _FILES else sorted(f for f in path.iterdir() if f.suffix in _FILES)
        is_saved = path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
        if not is_saved:
            missing = [str(file) for file in files if not file.is_file()]
            if missing or not files:
                raise ValueError(
                    f"Judged solutions: got no file at {(missing or [source])[0]!r}, expected {', '.join(_FILES)}. "
                    "Correct the path."
                )
            return {file.stem: as_dataset(read_table(str(file)), str(file)) for file in files}
        loaded = load_from_disk(source)
    else:
        loaded = load_dataset(source)
    return dict(loaded) if isinstance(loaded, DatasetDict) else {path.name: loaded}


def _read_rows(table, name: str, columns: _Columns) -> list[JudgedSolution]:
    if not len(table):
        raise ValueError(f"{name}: got no rows, expected at least one judged solution. Check the file.")
    missing = [column for column in columns[:3] if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name}: got columns {sorted(table.column_names)} without {', '.join(missing)}, expected a problem, "
            "steps and a label. Name them with `problem_column`, `steps_column` and `label_column`."
        )
    return [_judged(row, index, f"{name}, row {index}", columns) for index, row in enumerate(table)]


def _judged(row: Mapping[str, Any], index: int, name: str, columns: _Columns) -> JudgedSolution:
    problem, steps, label = (row[column] for column in columns[:3])
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(
            f"{name}: column {columns.problem!r} got {problem!r}, expected a non-empty string. Drop the row."
        )
    if isinstance(steps, str) and columns.splitter is not None:
        steps = clean_steps(split_steps(steps, columns.splitter), columns.splitter)
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise ValueError(
            f"{name}: column {columns.steps!r} got {str(row[columns.steps])[:80]!r}, expected a list of non-empty "
            "strings. Split the solution into steps, set `splitter` if it is a text, or drop the row."
        )
    if isinstance(label, list):
        label = _first_wrong(label, len(steps), f"{name}: column {columns.label!r}")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise ValueError(
            f"{name}: column {columns.label!r} got {label!r} with {len(steps)} steps, expected the index of the first "
            "wrong step from 0, or -1. Count steps from 0."
        )
    return JudgedSolution(str(row.get("id", index)), problem, tuple(steps), label)


def _first_wrong(labels: list[Any], num_steps: int, place: str) -> int:
    if len(labels) != num_steps or not all(isinstance(label, (int, float)) and 0 <= label <= 1 for label in labels):
        raise ValueError(
            f"{place} got {str(labels)[:80]!r} with {num_steps} steps, expected one boolean or number in [0, 1] per "
            "step. Correct the labels, or drop the row."
        )
    return next((index for index, label in enumerate(labels) if label < 0.5), -1)
