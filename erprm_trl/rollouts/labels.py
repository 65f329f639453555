"""From the rewards in rows to values of prefixes: of the sample, or of the posterior with its uncertainty. The
mathematics is `functional`'s.

Rows are read one after the other and none is kept: what a collection tells about all its prefixes are counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch

from ..functional.soft_values import soft_value
from ..functional.value_posterior import fit_beta_prior, posterior_value, success_counts
from ..steps import clean_steps


LABEL_VERSION = 1
"""Version of the labels: part of the name of cached ones. Raise it when a change of code changes labels."""


def sample_values(prefix_rewards: list[list[float]], eta: float) -> list[float]:
    """The value of each prefix's rewards as they are ([`~erprm_trl.functional.soft_value`])."""
    return [_sample_value(ascending(rewards), eta) for rewards in prefix_rewards]


@lru_cache(maxsize=4096)
def _sample_value(rewards: tuple[float, ...], eta: float) -> float:
    return soft_value(torch.tensor(rewards), eta).item()


class PosteriorValues:
    """
    Mean and standard deviation of a prefix's value, given its rewards and a Beta prior fitted on all of a collection
    ([`~erprm_trl.functional.posterior_value`]).

    Args:
        counts (`Counter`):
            How many of the collection's distinct prefixes have the same rewards, by [`ascending`].
        eta (`float`):
            Inverse reward temperature, finite.

    Raises:
        `ValueError`: if eta is infinite or a reward lies outside [0, 1].
    """

    def __init__(self, counts: Counter[tuple[float, ...]], eta: float):
        successes, failures = success_counts(list(counts), eta)
        prior = fit_beta_prior(successes, failures, torch.tensor(list(counts.values())))
        means, deviations = posterior_value(successes, failures, eta, prior)
        self._values = dict(zip(counts, zip(means.tolist(), deviations.tolist(), strict=True), strict=True))

    @classmethod
    def fit(cls, rows: Iterable[dict[str, Any]], eta: float) -> "PosteriorValues":
        """From the rows of a collection, those of a question together."""
        return cls(Counter(ascending(row["prefix_rewards"][place]) for row, place in distinct_prefixes(rows)), eta)

    def __call__(self, prefix_rewards: list[list[float]]) -> list[tuple[float, float]]:
        """Of each prefix of a row that was counted."""
        return [self._values[ascending(rewards)] for rewards in prefix_rewards]


def ascending(rewards: list[float]) -> tuple[float, ...]:
    """What prefixes with the same rewards in any order have in common, and so their value. Of rewards 0 and 1 there
    are few of these, however many prefixes: each is computed once."""
    return tuple(sorted(rewards))


def distinct_prefixes(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Where each distinct prefix with its own rewards stands first, as (row, place in its `prefix_rewards`): solutions
    that share a prefix and its rewards count once. A question's rows follow each other."""
    question, seen = None, set()
    for row in rows:
        if row["question_index"] != question:
            question, seen = row["question_index"], set()
        for place, rewards in enumerate(row["prefix_rewards"]):
            key = ("".join(row["steps"][: place + 1]), tuple(rewards))
            if key not in seen:
                seen.add(key)
                yield row, place


def labelled_example(
    row: dict[str, Any], splitter: str, eta: float, posterior: PosteriorValues | None = None
) -> dict[str, Any]:
    """
    A row in TRL's stepwise form: the label of each step is the value of the prefix that it ends, that of the last step
    the solution's own reward.

    Args:
        row (`dict[str, Any]`):
            A row of rollouts with labels (`unusable` is `None`).
        splitter (`str`):
            How its solution was split.
        eta (`float`):
            Inverse reward temperature.
        posterior ([`PosteriorValues`], *optional*):
            Labels are posterior means at its eta, with their standard deviations in `label_std`.
    """
    example = {"prompt": row["question"], "completions": clean_steps(row["steps"], splitter)}
    outcome = float(row["outcome_reward"])
    if posterior is None:
        return {**example, "labels": [*sample_values(row["prefix_rewards"], eta), outcome]}
    values = [*posterior(row["prefix_rewards"]), (outcome, 0.0)]
    return {**example, "labels": [mean for mean, _ in values], "label_std": [deviation for _, deviation in values]}
