"""Decides how many more continuations each prefix gets in adaptive collection. Works on rewards only."""

from collections.abc import Sequence

import numpy as np
import torch

from ..functional.value_posterior import expected_change, success_counts


# Jeffreys' prior of a success rate. A chunk is too small to fit a prior. This prior only decides where to sample; the
# labels do not depend on it.
PRIOR = (0.5, 0.5)


def allocate(
    rewards: Sequence[Sequence[Sequence[float]]],
    weights: Sequence[Sequence[int]],
    reach: Sequence[np.ndarray],
    budget: int,
    *,
    target_etas: Sequence[float],
    tolerance: float,
) -> list[list[int]]:
    """
    Allocates a budget of continuations such that the expected variance of the labels decreases most.

    Each continuation goes to the prefix where it is expected to reduce the posterior variance most. The reduction is
    summed over all labels for which the continuation may count: the label of the prefix itself, and the labels of
    longer prefixes, weighted by the probability that the continuation begins with them. The largest reduction over the
    target etas counts. Allocated continuations are taken into account immediately, with a variance that decreases as
    for a mean. A label whose possible change is below the tolerance does not count. Prefixes without any reward come
    first.

    Args:
        rewards (`Sequence[Sequence[Sequence[float]]]`):
            Rewards in [0, 1] known so far, for each of the P prefixes of each question.
        weights (`Sequence[Sequence[int]]`):
            Number of labels that each prefix determines, for each of the P prefixes of each question.
        reach (`Sequence[np.ndarray]`):
            For each question an array (P, P): the probability that a continuation of the row's prefix begins with the
            column's prefix, 1 on the diagonal.
        budget (`int`):
            Number of continuations to allocate.
        target_etas (`Sequence[float]`):
            Finite etas for which labels should be precise.
        tolerance (`float`):
            Standard deviation of a change of a label below which the change does not matter.

    Returns:
        `list[list[int]]`: number of continuations for each prefix of each question. Their sum is at most the budget.
    """
    sizes = [len(weights_of_question) for weights_of_question in weights]
    rewards_P = [rewards_of_prefix for rewards_of_question in rewards for rewards_of_prefix in rewards_of_question]
    known = np.array([len(rewards_of_prefix) for rewards_of_prefix in rewards_P], dtype=float)
    change = _expected_change(rewards_P, target_etas)
    # After m more continuations, the next one reduces the variance by change * n (n + 1) / ((n + m) (n + m + 1)),
    # where n is the number of known rewards plus the prior. This is exact at eta = 0. The sum over all later m is the
    # largest possible reduction (`left` below).
    n = known + sum(PRIOR)
    more = np.zeros_like(n)  # expected numbers, which need not be integers
    worth = np.array([float(weight) for weights_of_question in weights for weight in weights_of_question])

    def gain(index: slice) -> np.ndarray:
        left = change[index] * (n[index] + 1) * n[index] / (n[index] + more[index])
        falling = left / (n[index] + more[index] + 1)
        return np.where(left >= tolerance**2, falling * worth[index], 0.0)

    ends = np.cumsum([0, *sizes])
    blocks = [slice(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    question_of = np.repeat(np.arange(len(sizes)), sizes)
    total = np.concatenate([chance @ gain(block) for chance, block in zip(reach, blocks, strict=True)] or [[]])
    total[known == 0] = np.inf
    counts = np.zeros(len(n), dtype=int)
    for _ in range(budget):
        best = int(total.argmax()) if len(total) else -1
        if best < 0 or total[best] <= 0:
            break
        counts[best] += 1
        block = blocks[question_of[best]]
        chance = reach[question_of[best]]
        more[block] += chance[best - block.start]
        total[block] = np.where((known[block] == 0) & (counts[block] == 0), np.inf, chance @ gain(block))
    return [counts[block].tolist() for block in blocks]


def _expected_change(rewards: list[Sequence[float]], target_etas: Sequence[float]) -> np.ndarray:
    if not rewards:
        return np.zeros(0)
    changes = [expected_change(*success_counts(rewards, eta), eta, PRIOR) for eta in target_etas]
    return torch.stack(changes).amax(0).numpy()
