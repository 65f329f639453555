"""Writes labelled steps in the forms in which other projects publish theirs, so that their code can train on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .dataset_formats import TEXT_SEPARATOR, read_row
from .row_problems import REMEDY, find_problem


class _Labelled(NamedTuple):
    """A labelled solution. `right` says for each step whether its label reaches the threshold, and `first_error` is
    the index of the first step whose label does not, or -1."""

    prompt: str
    steps: Sequence[str]
    labels: Sequence[float]
    right: Sequence[bool]
    first_error: int


def from_stepwise(dataset, form: str, *, threshold: float = 0.5):
    """
    Converts labelled steps from TRL's stepwise form to the form of another project. [`to_stepwise`] is the inverse.

    Args:
        dataset (`datasets.Dataset`):
            Columns `prompt`, `completions` and `labels`, for example from [`~erprm_trl.RolloutDataset.labels`].
        form (`str`):
            The form, see [`to_stepwise`] for its columns:

            - `"math_shepherd"`: texts with `+` or `-`. Steps are numbered (`Step 1: ...`), if they are not already,
              because the question ends where `Step 1:` begins.
            - `"er_prm"`: the same texts with one number per step.
            - `"rlhflow"`: conversations. The question is also in a column `question`.
            - `"processbench"`: the index of the first wrong step.
            - `"prm800k"`: ratings 1 and -1. As in phase 2, the solution ends with the first wrong step.
            - `"skywork"`: one step per line, and one number per step.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest label of a right step, for the forms without numbers. Use a label at which the eta of the labels
            separates right from wrong. Only `"er_prm"` and `"skywork"` keep the labels themselves.

    Returns:
        `datasets.Dataset`: the rows in the other form. Write them with `to_json` or `to_parquet`, or upload them with
        `push_to_hub`.

    Raises:
        `ValueError`: for an unknown form, a dataset with other columns, labels that do not fit their steps, or a step
            that contains the form's separator.
    """
    if form not in _WRITERS:
        raise ValueError(f"form: got {form!r}, expected one of {', '.join(map(repr, _WRITERS))}. Choose one of them.")
    missing = {"prompt", "completions", "labels"}.difference(dataset.column_names)
    if missing:
        raise ValueError(
            f"from_stepwise: got columns {sorted(dataset.column_names)}, expected {', '.join(sorted(missing))} too. "
            "Convert the dataset with to_stepwise first."
        )

    def write(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        parsed = read_row(row, "stepwise")
        problem, detail = find_problem(parsed, None, 0, "completions", "labels")
        if problem:
            raise ValueError(f"Row {index} has {problem} ({detail}). {REMEDY[problem]}")
        right = [label >= threshold for label in parsed.labels]
        first_error = -1 if all(right) else right.index(False)
        solution = _Labelled(parsed.prompt, parsed.steps, parsed.labels, right, first_error)
        return _WRITERS[form](solution, index)

    return dataset.with_format(None).map(
        write, with_indices=True, remove_columns=dataset.column_names, desc="Writing steps"
    )


def _math_shepherd(solution: _Labelled, index: int) -> dict[str, Any]:
    signs = ["+" if right else "-" for right in solution.right]
    return {"input": _marked(solution, index, [TEXT_SEPARATOR] * len(signs)), "label": _marked(solution, index, signs)}


def _er_prm(solution: _Labelled, index: int) -> dict[str, Any]:
    text = _marked(solution, index, [TEXT_SEPARATOR] * len(solution.steps))
    return {"text": text, "value": list(solution.labels)}


def _marked(solution: _Labelled, index: int, marks: Sequence[str]) -> str:
    """The question and the steps, with a mark after each step."""
    _check(solution, index, TEXT_SEPARATOR, "the separator of Math-Shepherd's texts")
    is_numbered = solution.steps[0].lstrip().startswith("Step 1:")
    steps = [step if is_numbered else f"Step {place}: {step}" for place, step in enumerate(solution.steps, start=1)]
    text = "\n".join(f"{step} {mark}" for step, mark in zip(steps, marks, strict=True))
    return f"{solution.prompt} {text}".lstrip()


def _rlhflow(solution: _Labelled, index: int) -> dict[str, Any]:
    first, *others = solution.steps
    turns = []
    for step, right in zip([f"{solution.prompt} {first}".lstrip(), *others], solution.right, strict=True):
        turns += [{"content": step, "role": "user"}, {"content": "+" if right else "-", "role": "assistant"}]
    return {"question": solution.prompt, "conversations": turns}


def _processbench(solution: _Labelled, index: int) -> dict[str, Any]:
    return {
        "id": f"row-{index}",
        "problem": solution.prompt,
        "steps": list(solution.steps),
        "label": solution.first_error,
    }


def _prm800k(solution: _Labelled, index: int) -> dict[str, Any]:
    is_right = solution.first_error == -1
    judged = solution.steps if is_right else solution.steps[: solution.first_error + 1]
    steps = []
    for step, right in zip(judged, solution.right, strict=False):
        completion = {"text": step, "rating": 1 if right else -1, "flagged": None}
        steps.append(
            {"completions": [completion], "human_completion": None, "chosen_completion": 0 if right else None}
        )
    return {
        "question": {"problem": solution.prompt},
        "label": {"steps": steps, "finish_reason": "solution" if is_right else "found_error"},
    }


def _skywork(solution: _Labelled, index: int) -> dict[str, Any]:
    _check(solution, index, "\n", "which separates Skywork's steps")
    return {
        "problem": solution.prompt,
        "response": "\n".join(solution.steps),
        "step_rewards": list(solution.labels),
    }


def _check(solution: _Labelled, index: int, separator: str, meaning: str) -> None:
    for place, step in enumerate(solution.steps):
        if separator in step.strip():
            raise ValueError(
                f"Row {index}, column 'completions', step {place}: got {step[:60]!r}, expected no {separator!r}, "
                f"{meaning}. Replace it in the step, or choose another form."
            )


_WRITERS: dict[str, Callable[[_Labelled, int], dict[str, Any]]] = {
    "math_shepherd": _math_shepherd,
    "er_prm": _er_prm,
    "rlhflow": _rlhflow,
    "processbench": _processbench,
    "prm800k": _prm800k,
    "skywork": _skywork,
}
