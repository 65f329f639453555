"""Reads the graded outcomes of a rollout folder as a dataset, with one label per solution. Continuations are not
needed."""

import os
from collections.abc import Iterator
from typing import Any

from ..steps import clean_steps
from .dataset import LABELS, RolloutDataset
from .label_source import key_fingerprint, label_key, write_examples
from .shards import shard_paths


OUTCOME_VERSION = 1
"""Version of the outcome labels, which is part of the file name of cached labels."""


def outcome_labels(rollouts: RolloutDataset):
    """
    The outcome of each solution as its label.

    Args:
        rollouts ([`RolloutDataset`]):
            Graded rollouts, with or without continuations.

    Returns:
        `datasets.Dataset`: `prompt`, `completions` (the steps) and `label` (the solution's own reward), stored in the
        subfolder `labels`, or in the cache of `datasets` if the folder cannot be written to. Solutions marked
        `unusable` are left out, and their number is logged.

    Raises:
        `ValueError`: if a usable solution has no reward, because the collection was not graded.
    """
    from datasets import Features, List, Value

    splitter = rollouts.settings.splitter
    rollouts.log_unusable()

    def examples() -> Iterator[dict[str, Any]]:
        for row in rollouts:
            if not row.is_usable:
                continue
            if row.outcome_reward is None:
                raise ValueError(
                    f"{rollouts.path}: {row.name} has no reward, expected a graded collection. Collect with a grading "
                    "and reference answers."
                )
            steps = clean_steps(row.steps, splitter)
            yield {"prompt": row.question, "completions": steps, "label": float(row.outcome_reward)}

    features = Features({"prompt": Value("string"), "completions": List(Value("string")), "label": Value("float64")})
    key = label_key(OUTCOME_VERSION, shard_paths(rollouts.path), "outcome", 0.0)
    cache_dir = str(rollouts.path / LABELS) if os.access(rollouts.path, os.W_OK) else None
    return write_examples(examples, features, key_fingerprint(key), cache_dir)
