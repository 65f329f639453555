"""Computes the summary of a finished collection for its manifest, in passes over the rows."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .labels import PosteriorValues, ascending, distinct_prefixes
from .records import CollectionSettings, RolloutRow


def summarize_rollouts(rows: Iterable[RolloutRow], settings: CollectionSettings) -> dict[str, Any]:
    """
    Computes counts and means over the rows of a collection.

    Args:
        rows (`Iterable[RolloutRow]`):
            Rows of a [`RolloutDataset`]. They are iterated over more than once.
        settings ([`CollectionSettings`]):
            Settings of the collection.

    Returns:
        `dict`: numbers of solutions, prefixes and rollouts, and mean rewards. If prefixes share continuations, there
        is also `sharing` with the number of distinct prefixes, of continuations `generated` for them, of rewards
        `reused` for other prefixes, of continuations `saved` compared with a fixed number per prefix, and of prefixes
        that were `not_sampled`. With adaptive allocation, it has `label_std` over the labelled prefixes, at each
        target eta. If solutions are given, there is also `given` with the number of `repeated` solutions, which have
        the text of an earlier solution to their question, and the number of solutions that were `graded_differently`
        by their source.
    """
    counts, total, unusable = Counter(), Counter(), Counter()
    for row in rows:
        counts.update(
            solutions=1,
            unfinished=not row.finished,
            steps=len(row.steps),
            prefixes=len(row.prefix_rewards),
            prefix_rewards=sum(map(len, row.prefix_rewards)),
        )
        total["outcome"] += row.outcome_reward or 0.0  # `None` if the collection is not graded
        total["prefix"] += sum(map(sum, row.prefix_rewards))
        if not row.is_usable:
            unusable[row.unusable] += 1
    sharing = _sharing(rows, settings) if settings.shares_continuations else {}
    source = {"given": _of_given_solutions(rows)} if settings.has_given_solutions else {}
    solutions = counts["solutions"]
    sampled = 0 if source else solutions
    return {
        "solutions": solutions,
        "solutions_with_labels": solutions - unusable.total(),
        "unusable": dict(unusable),
        "unfinished_share": counts["unfinished"] / solutions,
        "mean_outcome_reward": None if settings.grading is None else total["outcome"] / solutions,
        "steps": counts["steps"],
        "prefixes": counts["prefixes"],
        "mean_prefix_reward": total["prefix"] / max(1, counts["prefix_rewards"]),
        "rollouts": sampled + (sharing["generated"] if sharing else counts["prefix_rewards"]),
        **({"sharing": sharing} if sharing else {}),
        **source,
    }


def _of_given_solutions(rows: Iterable[RolloutRow]) -> dict[str, int]:
    repeated = differently = 0
    for _, solutions in groupby(rows, key=lambda row: row.question_index):
        texts = set()
        for row in solutions:
            repeated += row.text in texts
            texts.add(row.text)
            differently += row.correct is not None and row.is_graded and row.correct != row.is_right
    return {"repeated": repeated, "graded_differently": differently}


def _sharing(rows: Iterable[RolloutRow], settings: CollectionSettings) -> dict[str, Any]:
    counts, distinct, every = Counter(), Counter(), Counter()
    for row in rows:
        counts.update(
            generated=sum(row.prefix_generated) + (row.question_generated or 0),
            targets=len(row.prefix_rewards) + (row.question_generated is not None),
        )
        every.update(map(ascending, row.prefix_rewards))
    for row, place in distinct_prefixes(rows):
        rewards_K, generated = row.prefix_rewards[place], row.prefix_generated[place]
        counts.update(distinct=1, reused=len(rewards_K) - generated, not_sampled=generated == 0)
        distinct[ascending(rewards_K)] += 1
    sharing = {
        "distinct_prefixes": counts["distinct"],
        "generated": counts["generated"],
        "reused": counts["reused"],
        "saved": settings.num_continuations * counts["targets"] - counts["generated"],
        "not_sampled": counts["not_sampled"],
    }
    if not settings.is_adaptive:
        return sharing
    spread = {f"{eta:g}": _spread(PosteriorValues(distinct, eta), every) for eta in settings.target_etas}
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
    """The quantile of ascending values that occur `counts` times each, interpolated linearly as in
    [`torch.quantile`]."""
    position = q * (counts.sum().item() - 1)
    neighbours = torch.tensor([position, position + 1]).long()
    low, high = values[
        torch.searchsorted(counts.cumsum(0), neighbours, right=True).clamp_max(len(values) - 1)
    ].tolist()
    return low + (position - int(position)) * (high - low)
