"""From the rewards in rows to values of prefixes: of the sample, or of the posterior with its uncertainty. The
mathematics is `functional`'s."""

from typing import Any

import torch

from ..functional.soft_values import soft_value
from ..functional.value_uncertainty import fit_beta_prior, posterior_value, success_counts


def sample_values(prefix_rewards: list[list[float]], eta: float) -> list[float]:
    """The value of each prefix's rewards as they are ([`~erprm_trl.functional.soft_value`])."""
    if not prefix_rewards:
        return []
    if len(set(map(len, prefix_rewards))) > 1:
        return [soft_value(torch.tensor(rewards), eta).item() for rewards in prefix_rewards]
    return soft_value(torch.tensor(prefix_rewards), eta).tolist()


def posterior_values(rows: list[dict[str, Any]], eta: float) -> list[list[tuple[float, float]]]:
    """
    Mean and standard deviation of each prefix's value, given its rewards and a Beta prior fitted on all of them
    ([`~erprm_trl.functional.posterior_value`]).

    Args:
        rows (`list[dict]`):
            The rows of [`RolloutDataset`]: a prefix's posterior depends on all.
        eta (`float`):
            Inverse reward temperature, finite.

    Returns:
        `list[list[tuple[float, float]]]`: of each row, of each of its prefixes.

    Raises:
        `ValueError`: if eta is infinite or a reward lies outside [0, 1].
    """
    sizes = [len(row["prefix_rewards"]) for row in rows]
    successes, failures = success_counts([rewards for row in rows for rewards in row["prefix_rewards"]], eta)
    # What several solutions share is one prefix to the prior.
    distinct = distinct_prefixes(rows)
    prior = fit_beta_prior(successes[distinct], failures[distinct])
    # Most prefixes have the same outcome as many others.
    outcomes, outcome_of = torch.stack([successes, failures]).unique(dim=1, return_inverse=True)
    means, deviations = posterior_value(*outcomes, eta, prior)
    values = zip(means[outcome_of].tolist(), deviations[outcome_of].tolist(), strict=True)
    return [[next(values) for _ in range(size)] for size in sizes]


def distinct_prefixes(rows: list[dict[str, Any]]) -> list[int]:
    """Where each distinct prefix with its own rewards stands first, in the order of rows and their prefixes: solutions
    that share a prefix and its rewards count once."""
    seen, first, position = set(), [], 0
    for row in rows:
        for length, rewards in enumerate(row["prefix_rewards"], start=1):
            key = (row["question_index"], "".join(row["steps"][:length]), tuple(rewards))
            if key not in seen:
                seen.add(key)
                first.append(position)
            position += 1
    return first
