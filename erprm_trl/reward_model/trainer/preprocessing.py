"""Checks and encodes labelled steps from a dataset or a rollout folder.

No row is dropped silently. An unusable row raises an error that names it, or is counted by its reason.

For a rollout folder, labels are computed, checked and encoded in one pass over the rows, and written to one Arrow
file. A later training run with the same labels and encoding reads this file.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...functional.value_posterior import precision_weights
from ...rollouts.dataset import RolloutDataset
from ...rollouts.label_options import LabelOptions
from ...rollouts.label_source import LabelSource
from ...steps import TURNS, clean_steps, join_steps, split_steps
from ..encoding import EncodedSolution, encode_solutions
from ..prm_format import PRMFormat
from .dataset_formats import FORMS, TEXT_FORMS, find_form, read_row
from .dataset_rows import Row
from .row_problems import TOO_LONG, droppable_row, find_problem


logger = logging.getLogger(__name__)

ENCODING_VERSION = 5
"""Version of the encoded examples, and part of their cache's name. Raise it when a code change alters them."""

ENCODED_COLUMNS = frozenset({"input_ids", "step_positions", "step_labels"})
"""Columns of every encoded dataset."""


def encode_examples(
    dataset,
    tokenizer,
    prm_format: PRMFormat,
    *,
    name: str = "train",
    max_length: int | None = None,
    last_step_only: bool = False,
    invalid_rows: str = "error",
    num_proc: int | None = None,
    label_weighting: str = "none",
) -> tuple[Any, dict[str, Any]]:
    """
    Checks and encodes a dataset of labelled steps.

    Args:
        dataset (`datasets.Dataset`):
            Dataset in a form of [`to_stepwise`], or with token ids.
        tokenizer, prm_format, max_length:
            See [`~erprm_trl.reward_model.encode_solutions`].
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in errors and logs.
        last_step_only (`bool`, *optional*, defaults to `False`):
            Whether to keep only the label of the last step, as for an outcome reward model.
        invalid_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` raises an error at the first unusable row. `"drop"` skips such rows, and counts and logs them.
        num_proc (`int`, *optional*):
            Number of processes.
        label_weighting (`str`, *optional*, defaults to `"none"`):
            `"precision"` adds `step_weights` from the dataset's column `label_std`
            ([`~erprm_trl.functional.precision_weights`]), with a mean of 1 over all kept steps.

    Returns:
        `tuple`: a `datasets.Dataset` with `input_ids`, `step_positions`, `step_labels`, `question_id`,
        `prompt_length` and `length` (and `step_weights`), and the counts `{"rows", "kept", "steps", "dropped_rows":
        {reason: n}, "rows_with_dropped_steps", "dropped_steps"}`.

    Raises:
        `ValueError`: for the first unusable row if `invalid_rows="error"`, if no row is left, or if columns are
            missing.
    """
    check_options(invalid_rows, label_weighting)
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset is empty, expected at least one row.")
    form = form_of(dataset.column_names, name)
    weighted = label_weighting == "precision"
    _check_deviations(name, dataset.column_names, form, weighted)
    warn_about_rows(dataset.with_format(None).select(range(min(100, len(dataset)))), form, prm_format, name)
    encoded = dataset.with_format(None).map(
        encode_batch,
        batched=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "form": form,
            "tokenizer": tokenizer,
            "prm_format": prm_format,
            "max_length": max_length,
            "last_step_only": last_step_only,
            "weighted": weighted,
        },
        num_proc=num_proc,
        desc=f"Encoding {name} dataset",
    )
    return _keep_usable(encoded, name, invalid_rows, max_length)


def encode_rollouts(
    rollouts: RolloutDataset,
    eta: float,
    estimator: str | None,
    tokenizer,
    prm_format: PRMFormat,
    *,
    name: str = "train",
    max_length: int | None = None,
    last_step_only: bool = False,
    invalid_rows: str = "error",
    num_proc: int | None = None,
    label_weighting: str = "none",
    options: LabelOptions | None = None,
) -> tuple[Any, dict[str, Any]]:
    """
    Labels rollouts at `eta`, checks and encodes them. The result equals [`encode_examples`] on
    [`RolloutDataset.labels`], but needs only one pass over the rows and one Arrow file.

    With several processes (`num_proc`), one process first writes the labels, and then they are encoded in parallel.

    Args:
        rollouts ([`~erprm_trl.rollouts.RolloutDataset`]):
            The rollouts.
        eta, estimator:
            See [`RolloutDataset.labels`].
        tokenizer, prm_format, name, max_length, last_step_only, invalid_rows, num_proc, label_weighting:
            See [`encode_examples`].
        options ([`~erprm_trl.rollouts.LabelOptions`], *optional*):
            Options that make the labels cleaner.

    Returns:
        `tuple`: see [`encode_examples`]. With options, the counts also have `labels`, the manifest of the labels.

    Raises:
        `ValueError`: see [`RolloutDataset.labels`] and [`encode_examples`].
    """
    source = rollouts.label_source(eta, estimator, options)
    if num_proc is not None and num_proc > 1:
        encoded, counts = encode_examples(
            source.labels(),
            tokenizer,
            prm_format,
            name=name,
            max_length=max_length,
            last_step_only=last_step_only,
            invalid_rows=invalid_rows,
            num_proc=num_proc,
            label_weighting=label_weighting,
        )
        return encoded, _with_label_manifest(counts, source)
    from datasets.fingerprint import Hasher

    check_options(invalid_rows, label_weighting)
    weighted = label_weighting == "precision"
    _check_deviations(name, source.column_names, "stepwise", weighted)
    encoding = {"max_length": max_length, "last_step_only": last_step_only, "weighted": weighted}
    encode = partial(encode_batch, form="stepwise", tokenizer=tokenizer, prm_format=prm_format, **encoding)
    key = (ENCODING_VERSION, source.fingerprint, prm_format.with_eta(None).to_dict(), Hasher.hash(tokenizer), encoding)
    fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    encoded = source.encoded(encode, _checked_features(weighted), fingerprint)
    if len(encoded) == 0:
        raise ValueError(f"The {name} dataset is empty, expected at least one row.")
    kept, counts = _keep_usable(encoded, name, invalid_rows, max_length)
    return kept, _with_label_manifest(counts, source)


def _with_label_manifest(counts: dict[str, Any], source: LabelSource) -> dict[str, Any]:
    manifest = source.manifest
    return counts if manifest is None else {**counts, "labels": manifest}


def form_of(column_names: Sequence[str], name: str) -> str:
    """Returns the form of the dataset `name`, a key of `FORMS`. Raises a `ValueError` if a column is missing."""
    form = find_form(column_names)
    if form == "stepwise" and "prompt" not in column_names:
        raise ValueError(
            f"The {name} dataset has columns {sorted(column_names)}, expected 'prompt' among them. Rename columns "
            "with dataset.rename_columns."
        )
    return form


def check_options(invalid_rows: str, label_weighting: str) -> None:
    """Checks two arguments of [`encode_examples`]."""
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows: got {invalid_rows!r}, expected 'error' or 'drop'. Choose one.")
    if label_weighting not in ("none", "precision"):
        raise ValueError(f"label_weighting: got {label_weighting!r}, expected 'none' or 'precision'. Choose one.")


def _check_deviations(name: str, column_names: Sequence[str], form: str, weighted: bool) -> None:
    if weighted and (form != "stepwise" or "label_std" not in column_names):
        raise ValueError(
            f"The {name} dataset has columns {column_names}, expected 'label_std' among them with "
            "label_weighting='precision'. Label rollouts at a finite eta with label_estimator='posterior', or set "
            "label_weighting='none'."
        )


def warn_about_rows(first_rows: Iterable[dict[str, Any]], form: str, prm_format: PRMFormat, name: str) -> None:
    """Warns if some of the first rows of a dataset have no question, or steps that their text would not have."""
    if form == "token ids":
        return
    rows = [read_row(row, form) for row in first_rows]
    splitter = prm_format.splitter
    num_others = sum(len(_split_again(row.steps, prm_format)) != len(row.steps) for row in rows)
    if num_others and splitter != TURNS:
        logger.warning(
            "%s dataset: %s other steps than splitter=%r makes of the same text. Texts that are scored, as in "
            "StepScorer.score_texts and in the training of policies, are split by it. Set another splitter, or score "
            "lists of steps.",
            name, "the first row has" if len(rows) == 1 else f"{num_others} of the first {len(rows)} rows have",
            splitter,
        )  # fmt: skip
    without = sum(not row.prompt and not row.problem for row in rows)
    if without:
        logger.warning(
            "%s dataset: %s no question%s. Each such row counts as a question of its own, so "
            "auc_within_questions does not compare solutions of the same question.",
            name, "the first row has" if len(rows) == 1 else f"{without} of the first {len(rows)} rows have",
            " (no 'Step 1:', which ends it)" if form in TEXT_FORMS else "",
        )  # fmt: skip


def _split_again(steps: Sequence[str], prm_format: PRMFormat) -> list[str]:
    """The steps of the text of these steps."""
    splitter = prm_format.splitter
    text = join_steps(clean_steps(steps, splitter), splitter, closed=False)
    return clean_steps(split_steps(text, splitter, prm_format.steps_of), splitter)


def encoded_features(weighted: bool):
    """Types of the columns of [`encode_examples`], and with `weighted` also of `step_weights`."""
    from datasets import Features, List, Value

    return Features(
        {
            "input_ids": List(Value("int32")),
            "step_positions": List(Value("int64")),
            "step_labels": List(Value("float64")),
            **({"step_weights": List(Value("float64"))} if weighted else {}),
            "question_id": Value("int64"),
            "prompt_length": Value("int64"),
            "length": Value("int64"),
        }
    )


def _checked_features(weighted: bool):
    from datasets import Features, Value

    checks = {"num_dropped_steps": Value("int64"), "problem": Value("string"), "detail": Value("string")}
    return Features({**encoded_features(weighted), **checks})


def _keep_usable(encoded, name: str, invalid_rows: str, max_length: int | None) -> tuple[Any, dict[str, Any]]:
    """Returns the usable encoded rows, and the counts of all rows."""
    problems = list(_values(encoded, "problem"))
    if invalid_rows == "error":
        for row, problem in enumerate(problems):
            if problem:
                raise droppable_row(row, name, problem, encoded[row]["detail"])
    keep = [row for row, problem in enumerate(problems) if not problem]
    kept = encoded.select(keep)
    dropped_steps = [count for count in _values(kept, "num_dropped_steps") if count]
    counts = {
        "rows": len(encoded),
        "kept": len(kept),
        "steps": sum(map(len, _values(kept, "step_positions"))),
        "dropped_rows": dict(Counter(problem for problem in problems if problem)),
        "rows_with_dropped_steps": len(dropped_steps),
        "dropped_steps": sum(dropped_steps),
    }
    if counts["dropped_rows"]:
        logger.warning(
            "%s dataset: %d of %d rows are dropped: %s.",
            name,
            len(encoded) - len(kept),
            len(encoded),
            counts["dropped_rows"],
        )
    if dropped_steps:
        logger.warning(
            "%s dataset: %d labelled steps at the end of %d solutions do not fit max_length=%s and are dropped.",
            name, counts["dropped_steps"], counts["rows_with_dropped_steps"], max_length,
        )  # fmt: skip
    if not keep:
        raise ValueError(
            f"The {name} dataset has no usable row, expected at least one. Reasons and number of rows: "
            f"{counts['dropped_rows']}. Set invalid_rows='error' to see the fix of the first row."
        )
    label = _only_label(kept)
    if label is not None:
        logger.warning("%s dataset: every label is %s. A model cannot learn to tell steps apart.", name, label)
    kept = kept.remove_columns(["problem", "detail", "num_dropped_steps"])
    return (scale_weights(kept) if "step_weights" in kept.column_names else kept), counts


def count_encoded(dataset) -> dict[str, Any]:
    """The counts of [`encode_examples`] for examples that were encoded before."""
    steps = sum(map(len, _values(dataset, "step_positions")))
    return {
        "rows": len(dataset), "kept": len(dataset), "steps": steps, "dropped_rows": {},
        "rows_with_dropped_steps": 0, "dropped_steps": 0,
    }  # fmt: skip


def _values(dataset, column: str) -> Iterator[Any]:
    """Yields the values of a column. They are read in batches, so that a large column is never in memory at once."""
    for batch in dataset.select_columns(column).iter(1000):
        yield from batch[column]


def _only_label(dataset) -> float | None:
    """The common label of all steps, or `None` if their labels differ."""
    labels = set()
    for labels_S in _values(dataset, "step_labels"):
        labels.update(labels_S)
        if len(labels) > 1:
            return None
    return labels.pop() if labels else None


@dataclass(frozen=True)
class _ScaledWeights:
    """Divides `step_weights` by their mean when rows are read. The mean is only known after all rows are encoded, and
    writing the scaled weights would need a second copy of the whole file."""

    mean: float

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "step_weights" not in batch:
            return batch
        scaled = [[weight / self.mean for weight in weights_S] for weights_S in batch["step_weights"]]
        return {**batch, "step_weights": scaled}


def scale_weights(dataset):
    """Divides the `step_weights` of a dataset by their mean when rows are read."""
    mean = sum(map(sum, _values(dataset, "step_weights"))) / sum(map(len, _values(dataset, "step_weights")))
    return dataset.with_transform(_ScaledWeights(mean))


def encode_batch(
    batch: dict[str, list],
    form: str,
    tokenizer,
    prm_format: PRMFormat,
    max_length: int | None,
    last_step_only: bool,
    weighted: bool,
) -> dict[str, list]:
    """
    Encodes rows of a dataset.

    Args:
        batch (`dict[str, list]`):
            Columns of the dataset.
        form (`str`):
            Form of the dataset, a key of `FORMS`.
        tokenizer, prm_format, max_length, last_step_only:
            See [`encode_examples`].
        weighted (`bool`):
            Whether to add `step_weights`.

    Returns:
        `dict[str, list]`: the columns of [`encode_examples`], `num_dropped_steps`, and `problem` and `detail`, which
        hold the reason why a row cannot be used and its place. Both are empty for usable rows.
    """
    rows = [
        read_row(dict(zip(batch, values, strict=True)), form, weighted) for values in zip(*batch.values(), strict=True)
    ]
    if form == "token ids":
        encoded = [_cut_token_ids(row, max_length) for row in rows]
    else:
        encoded = encode_solutions(
            tokenizer, prm_format, [row.prompt for row in rows], [row.steps for row in rows], max_length
        )
    columns: dict[str, list] = {
        key: []
        for key in (
            "input_ids",
            "step_positions",
            "step_labels",
            *(["step_weights"] if weighted else []),
            "question_id",
            "prompt_length",
            "length",
            "num_dropped_steps",
            "problem",
            "detail",
        )
    }
    vocabulary = len(tokenizer)
    for row, solution in zip(rows, encoded, strict=True):
        problem, detail = find_problem(row, solution.separator_inside, vocabulary, *FORMS[form])
        positions = solution.step_positions
        weights = precision_weights(torch.tensor(row.stds or [])).tolist()[: len(positions)]
        labels = row.labels[: len(positions)]
        if last_step_only or form == "outcome":
            positions, labels = ([], []) if solution.num_dropped_steps else (positions[-1:], labels[-1:])
            weights = weights[-1:] if positions else []
        if not problem and not positions:
            problem, detail = TOO_LONG, f"max_length={max_length}, {len(row.steps)} steps"
        columns["input_ids"].append(solution.input_ids)
        columns["step_positions"].append(positions)
        columns["step_labels"].append(labels)
        if weighted:
            columns["step_weights"].append(weights)
        # Without a question, or in token ids, where its end is unknown, every distinct row counts as a question.
        question = row.prompt or repr(row.input_ids or row.steps)
        columns["question_id"].append(
            int.from_bytes(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[:7], "big")
        )
        columns["prompt_length"].append(solution.prompt_length)
        columns["length"].append(len(solution.input_ids))
        columns["num_dropped_steps"].append(solution.num_dropped_steps)
        columns["problem"].append(problem)
        columns["detail"].append(detail)
    return columns


def _cut_token_ids(row: Row, max_length: int | None) -> EncodedSolution:
    """Cuts a row of token ids after its last label within `max_length`."""
    positions = [position for position in row.steps if max_length is None or position < max_length]
    ids = list(row.input_ids or [])[: positions[-1] + 1 if positions else 0]
    return EncodedSolution(ids, positions, len(row.steps) - len(positions), None, 0)
