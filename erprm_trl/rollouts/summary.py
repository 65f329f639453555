"""What a finished collection comes to, in numbers: the summary of its manifest."""

from collections import Counter
from typing import Any

import torch

from .step_labels import distinct_prefixes, posterior_values
from .store import shares_continuations


def summarize_rollouts(rows: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """
    Counts and means over the rows of a collection.

    Args:
        rows (`list[dict]`):
            Of [`RolloutDataset`].
        config (`dict[str, Any]`):
            The manifest's settings.

    Returns:
        `dict`: solutions, prefixes, rollouts and mean rewards. If prefixes share continuations also `sharing`:
        distinct prefixes, continuations `generated` for them, `reused` (counted for one more prefix without being
        sampled again), `saved` against the fixed number, and prefixes `not_sampled` at all; with adaptive allocation
        `label_std` over labelled prefixes at each target eta.
    """
    raw = [rewards for row in rows for rewards in row["prefix_rewards"]]
    unusable = Counter(row["unusable"] for row in rows if row["unusable"])
    sharing = _sharing(rows, raw, config) if shares_continuations(config) else {}
    generated = sharing["generated"] if sharing else sum(map(len, raw))
    return {
        "solutions": len(rows),
        "solutions_with_labels": len(rows) - unusable.total(),
        "unusable": dict(unusable),
        "unfinished_share": sum(not row["finished"] for row in rows) / len(rows),
        "mean_outcome_reward": (
            None if config["grading"] is None else sum(row["outcome_reward"] for row in rows) / len(rows)
        ),
        "steps": sum(len(row["steps"]) for row in rows),
        "prefixes": len(raw),
        "mean_prefix_reward": sum(map(sum, raw)) / max(1, sum(map(len, raw))),
        "rollouts": len(rows) + generated,
        **({"sharing": sharing} if sharing else {}),
    }


def _sharing(rows: list[dict[str, Any]], raw: list[list[float]], config: dict[str, Any]) -> dict[str, Any]:
    counts = [count for row in rows for count in row["prefix_generated"]]
    distinct = distinct_prefixes(rows)
    of_questions = sum(row.get("question_generated", 0) for row in rows)
    targets = len(raw) + sum("question_generated" in row for row in rows)
    sharing = {
        "distinct_prefixes": len(distinct),
        "generated": sum(counts) + of_questions,
        "reused": sum(len(raw[index]) - counts[index] for index in distinct),
        "saved": config["num_continuations"] * targets - sum(counts) - of_questions,
        "not_sampled": sum(counts[index] == 0 for index in distinct),
    }
    if config["allocation"] == "fixed":
        return sharing
    return {**sharing, "label_std": {f"{eta:g}": _spread(rows, eta) for eta in config["target_etas"]}}


def _spread(rows: list[dict[str, Any]], eta: float) -> dict[str, float] | None:
    deviations = torch.tensor([deviation for row in posterior_values(rows, eta) for _, deviation in row])
    if not len(deviations):
        return None
    quantiles = deviations.quantile(torch.tensor([0.5, 0.9, 1.0])).tolist()
    return {"mean": deviations.mean().item(), **dict(zip(("median", "90%", "largest"), quantiles, strict=True))}
