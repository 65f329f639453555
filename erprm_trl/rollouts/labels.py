"""Computes step labels from the rewards in rows: the values of prefixes, or their posterior means with standard
deviations.

Rows are read one after the other and are not kept in memory. The prior of a collection is fitted to counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from ..functional.soft_values import soft_value
from ..functional.value_posterior import fit_beta_prior, posterior_value, success_counts
from ..steps import clean_steps
from .label_cleaning import cleaned_labels, relative_values
from .label_options import LabelOptions
from .records import RolloutRow


LABEL_VERSION = 3
"""Version of the labels, which is part of the file name of cached labels. Raise it if a change of code changes
labels."""


def sample_values(prefix_rewards: list[list[float]], eta: float) -> list[float]:
    """The value of each prefix, computed from its rewards without a prior ([`~erprm_trl.functional.soft_value`])."""
    return [_sample_value(ascending(rewards), eta) for rewards in prefix_rewards]


@lru_cache(maxsize=4096)
def _sample_value(rewards: tuple[float, ...], eta: float) -> float:
    return soft_value(torch.tensor(rewards), eta).item()


class PosteriorValues:
    """
    Posterior mean and standard deviation of the value of a prefix, given its rewards and a Beta prior that is fitted
    to the whole collection ([`~erprm_trl.functional.posterior_value`]).

    Args:
        counts (`Counter`):
            Number of distinct prefixes in the collection, by their rewards in the form of [`ascending`].
        eta (`float`):
            Inverse reward temperature, finite.

    Raises:
        `ValueError`: if eta is infinite, or a reward is outside [0, 1].
    """

    def __init__(self, counts: Counter[tuple[float, ...]], eta: float):
        successes, failures = success_counts(list(counts), eta)
        prior = fit_beta_prior(successes, failures, torch.tensor(list(counts.values())))
        means, deviations = posterior_value(successes, failures, eta, prior)
        self._values = dict(zip(counts, zip(means.tolist(), deviations.tolist(), strict=True), strict=True))

    @classmethod
    def fit(cls, rows: Iterable[RolloutRow], eta: float) -> "PosteriorValues":
        """Fits the prior to the rows of a collection. The rows of each question must be consecutive."""
        return cls(Counter(ascending(row.prefix_rewards[place]) for row, place in distinct_prefixes(rows)), eta)

    def __call__(self, prefix_rewards: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
        """Posterior mean and standard deviation of each prefix of a row of the collection."""
        return [self._values[ascending(rewards_K)] for rewards_K in prefix_rewards]


def ascending(rewards_K: Sequence[float]) -> tuple[float, ...]:
    """
    The rewards of a prefix in ascending order.

    Prefixes with the same rewards in a different order have the same value. With rewards of 0 and 1 there are few
    distinct tuples for any number of prefixes, so each value is computed only once.
    """
    return tuple(sorted(rewards_K))


def distinct_prefixes(rows: Iterable[RolloutRow]) -> Iterator[tuple[RolloutRow, int]]:
    """
    Yields the first occurrence of each distinct prefix as a row and an index into its `prefix_rewards`.

    Prefixes with the same text and the same rewards count once. The rows of each question must be consecutive.
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
    row: RolloutRow,
    splitter: str,
    eta: float,
    posterior: PosteriorValues | None = None,
    options: LabelOptions | None = None,
    question_rate: float | None = None,
) -> dict[str, Any]:
    """
    Converts a row to TRL's stepwise format. The label of a step is the value of the prefix that ends with it. The
    label of the last step is the reward of the solution itself.

    Args:
        row ([`RolloutRow`]):
            A row with labels (`is_usable`).
        splitter (`str`):
            Splitter of its solution.
        eta (`float`):
            Inverse reward temperature.
        posterior ([`PosteriorValues`], *optional*):
            Posterior values at this eta. With them, the labels are posterior means, and `label_std` has their standard
            deviations.
        options ([`LabelOptions`], *optional*):
            Options that change the labels.
        question_rate (`float`, *optional*):
            Rate of the question, for relative labels.

    Returns:
        `dict[str, Any]`: `prompt`, `completions` and `labels`, and with a posterior also `label_std`.
    """
    example = {"prompt": row.question, "completions": clean_steps(row.steps, splitter)}
    outcome, label_std = float(row.outcome_reward), None
    if posterior is not None:
        values = [*posterior(row.prefix_rewards), (outcome, 0.0)]
        labels, label_std = [mean for mean, _ in values], [deviation for _, deviation in values]
    elif options is not None and options.relative:
        labels = [*relative_values(row.prefix_rewards, question_rate, eta), outcome]
    else:
        labels = [*sample_values(row.prefix_rewards, eta), outcome]
    if options is not None:
        labels, label_std = cleaned_labels(row, labels, label_std, options)
    return {**example, "labels": labels} | ({} if label_std is None else {"label_std": label_std})
