"""What a finished collection comes to, in numbers: the summary of its manifest. Rows are read one after the other."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .labels import PosteriorValues, ascending, distinct_prefixes
from .shards import shares_continuations


def summarize_rollouts(rows: Iterable[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """
    Counts and means over the rows of a collection.

    Args:
        rows (`Iterable[dict]`):
            Of [`RolloutDataset`]; they are gone through more than once.
        config (`dict[str, Any]`):
            The manifest's settings.

    Returns:
        `dict`: solutions, prefixes, rollouts and mean rewards. If prefixes share continuations also `sharing`:
        distinct prefixes, continuations `generated` for them, `reused` (counted for one more prefix without being
        sampled again), `saved` against the fixed number, and prefixes `not_sampled` at all; with adaptive allocation
        `label_std` over labelled prefixes at each target eta.
    """
    number, total, unusable = Counter(), Counter(), Counter()
    for row in rows:
        number.update(
            solutions=1,
            unfinished=not row["finished"],
            steps=len(row["steps"]),
            prefixes=len(row["prefix_rewards"]),
            prefix_rewards=sum(map(len, row["prefix_rewards"])),
        )
        total["outcome"] += row["outcome_reward"] or 0.0  # `None` where nothing is graded
        total["prefix"] += sum(map(sum, row["prefix_rewards"]))
        if row["unusable"]:
            unusable[row["unusable"]] += 1
    sharing = _sharing(rows, config) if shares_continuations(config) else {}
    solutions = number["solutions"]
    return {
        "solutions": solutions,
        "solutions_with_labels": solutions - unusable.total(),
        "unusable": dict(unusable),
        "unfinished_share": number["unfinished"] / solutions,
        "mean_outcome_reward": None if config["grading"] is None else total["outcome"] / solutions,
        "steps": number["steps"],
        "prefixes": number["prefixes"],
        "mean_prefix_reward": total["prefix"] / max(1, number["prefix_rewards"]),
        "rollouts": solutions + (sharing["generated"] if sharing else number["prefix_rewards"]),
        **({"sharing": sharing} if sharing else {}),
    }


def _sharing(rows: Iterable[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    number, distinct, every = Counter(), Counter(), Counter()
    for row in rows:
        number.update(
            generated=sum(row["prefix_generated"]) + row.get("question_generated", 0),
            targets=len(row["prefix_rewards"]) + ("question_generated" in row),
        )
        every.update(map(ascending, row["prefix_rewards"]))
    for row, place in distinct_prefixes(rows):
        rewards, generated = row["prefix_rewards"][place], row["prefix_generated"][place]
        number.update(distinct=1, reused=len(rewards) - generated, not_sampled=generated == 0)
        distinct[ascending(rewards)] += 1
    sharing = {
        "distinct_prefixes": number["distinct"],
        "generated": number["generated"],
        "reused": number["reused"],
        "saved": config["num_continuations"] * number["targets"] - number["generated"],
        "not_sampled": number["not_sampled"],
    }
    if config["allocation"] == "fixed":
        return sharing
    spread = {f"{eta:g}": _spread(PosteriorValues(distinct, eta), every) for eta in config["target_etas"]}
    return {**sharing, "label_std": spread}


def _spread(posterior: PosteriorValues, every: Counter[tuple[float, ...]]) -> dict[str, float] | None:
    if not every:
        return None
    deviations = torch.tensor([deviation for _, deviation in posterior(every)], dtype=torch.float64)
    deviations, order = deviations.sort()
    counts = torch.tensor(list(every.values()))[order]
    quantiles = {name: _quantile(deviations, counts, q) for name, q in (("median", 0.5), ("90%", 0.9), ("largest", 1))}
    return {"mean": (deviations @ counts.double() / counts.sum()).item(), **quantiles}


def _quantile(values: Tensor, counts: Tensor, q: float) -> float:
    """Of ascending values, each as often as its count: linear between neighbours, as [`torch.quantile`]."""
    position = q * (counts.sum().item() - 1)
    neighbours = torch.tensor([position, position + 1]).long()
    low, high = values[
        torch.searchsorted(counts.cumsum(0), neighbours, right=True).clamp_max(len(values) - 1)
    ].tolist()
    return low + (position - int(position)) * (high - low)
