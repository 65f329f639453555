"""Which prefixes get how many more continuations: decisions on numbers alone, nothing is sampled here."""

from collections.abc import Sequence

import numpy as np
import torch

from ..functional.value_posterior import expected_change, success_counts


# Jeffreys' prior of a success rate. One chunk is too little to fit a prior, and labels do not hang on this one: it
# decides where to sample, no more.
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
    Spends a budget of continuations where it is expected to reduce the labels' variance most.

    The next continuation goes to the prefix where one more reduces the posterior variance most, summed over the labels
    that it counts for: those of the prefix itself and, by the chance that it passes through them, of longer ones. Of
    the target etas the worst decides. What a prefix was given counts at once, with the variance falling as it does for
    a mean. Where more could only change a label by less than the tolerance, that label asks for no more. A prefix of
    which nothing is known comes first.

    Args:
        rewards (`Sequence`):
            Of each question, of each of its P prefixes: the rewards known so far, in [0, 1].
        weights (`Sequence`):
            Likewise, how many labels the prefix is for.
        reach (`Sequence[np.ndarray]`):
            Of each question (P, P): the chance that a continuation of the row's prefix is one of the column's too, 1
            on the diagonal.
        budget (`int`):
            Continuations to spend.
        target_etas (`Sequence[float]`):
            The etas that labels are to be good for, finite.
        tolerance (`float`):
            Standard deviation of a change of the label that is not worth having.

    Returns:
        `list[list[int]]`: how many continuations each prefix gets, together at most the budget.
    """
    sizes = [len(weights_of_question) for weights_of_question in weights]
    rewards_P = [rewards_of_prefix for rewards_of_question in rewards for rewards_of_prefix in rewards_of_question]
    known = np.array([len(rewards_of_prefix) for rewards_of_prefix in rewards_P], dtype=float)
    change = _expected_change(rewards_P, target_etas)
    # With m more, one more reduces the variance by change * n (n + 1) / ((n + m) (n + m + 1)), n = all that is known,
    # the prior included. That is exact at eta = 0; all that ever can be reduced from there is the sum over m.
    n = known + sum(PRIOR)
    more = np.zeros_like(n)  # expected, so not whole numbers
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
