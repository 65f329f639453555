"""Step labels from the rewards in rows: the values of prefixes, or their posterior means with standard deviations.

Rows are read one after the other and are not kept. The prior of a collection is fitted on counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from ..functional.soft_values import soft_value
from ..functional.value_posterior import fit_beta_prior, posterior_value, success_counts
from ..steps import clean_steps
from .records import RolloutRow


LABEL_VERSION = 2
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
    def fit(cls, rows: Iterable[RolloutRow], eta: float) -> "PosteriorValues":
        """Fits the prior on the rows of a collection, in which the rows of each question follow one another."""
        return cls(Counter(ascending(row.prefix_rewards[place]) for row, place in distinct_prefixes(rows)), eta)

    def __call__(self, prefix_rewards: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
        """Mean and standard deviation of each prefix of a row that was counted."""
        return [self._values[ascending(rewards_K)] for rewards_K in prefix_rewards]


def ascending(rewards_K: Sequence[float]) -> tuple[float, ...]:
    """
    The rewards of a prefix in ascending order.

    Prefixes with the same rewards in any order have the same value. With rewards of 0 and 1 there are few distinct
    tuples, however many prefixes there are, and each value is computed once.
    """
    return tuple(sorted(rewards_K))


def distinct_prefixes(rows: Iterable[RolloutRow]) -> Iterator[tuple[RolloutRow, int]]:
    """
    The first occurrence of each distinct prefix with its own rewards, as (row, index into its `prefix_rewards`).

    Solutions that share a prefix and its rewards count once. The rows of each question must follow one another.
    """
    question_index, seen = None, set()
    for row in rows:
        if row.question_index != question_index:
            question_index, seen = row.question_index, set()
        for place, rewards_K in enumerate(row.prefix_rewards):
            key = (row.prefix(place + 1), tuple(rewards_K))
            if key not in seen:
                seen.add(key)
                yield row, place


def labelled_example(
    row: RolloutRow, splitter: str, eta: float, posterior: PosteriorValues | None = None
) -> dict[str, Any]:
    """
    A row in TRL's stepwise form. The label of each step is the value of the prefix that it ends, and the label of the
    last step is the solution's own reward.

    Args:
        row ([`RolloutRow`]):
            A row with labels (`is_usable`).
        splitter (`str`):
            How its solution was split.
        eta (`float`):
            Inverse reward temperature.
        posterior ([`PosteriorValues`], *optional*):
            Makes the labels posterior means at its eta, with their standard deviations in `label_std`.
    """
    example = {"prompt": row.question, "completions": clean_steps(row.steps, splitter)}
    outcome = float(row.outcome_reward)
    if posterior is None:
        return {**example, "labels": [*sample_values(row.prefix_rewards, eta), outcome]}
    values = [*posterior(row.prefix_rewards), (outcome, 0.0)]
    return {**example, "labels": [mean for mean, _ in values], "label_std": [deviation for _, deviation in values]}
