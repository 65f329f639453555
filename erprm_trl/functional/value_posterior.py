"""How certain the value of a prefix is after a few graded continuations, and how much one more would change it. Pure
tensor functions in float64.

Everything rests on one number per prefix, the success rate that stands for its value at eta
([`~erprm_trl.functional.implied_success_rate`]), and on a Beta prior of it. A posterior depends on what was seen, not
on why sampling stopped: it stays right where the mean of a sample that was stopped early would be biased.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_float32
from .soft_values import implied_success_rate, soft_value_from_rate


# Integrals over the rate run over its log-odds, where integrands are smooth and fall off exponentially: there sums on
# an even grid converge faster than any power of its step.
_STEP = 0.25
_GRID = torch.arange(-40, 40 + _STEP / 2, _STEP, dtype=torch.float64)
_WEAKEST, _STRONGEST = 0.02, 1000.0


def success_counts(rewards: Sequence[Sequence[float]], eta: float) -> tuple[Tensor, Tensor]:
    r"""
    Successes and failures among the continuations of each prefix, as the value at eta sees them.

    $$ s = \sum_{k=1}^{K} \frac{e^{\eta r_k} - 1}{e^{\eta} - 1}, \qquad f = K - s $$

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Rewards in [0, 1] of the continuations of each of P prefixes, which may differ in their number K; K may be
            0.
        eta (`float`):
            Inverse reward temperature, finite. Rewards of 0 and 1 count the same at every eta.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: s and f, float64 of shape (P,): whole numbers for rewards of 0 and 1.

    Raises:
        `ValueError`: for a reward that is NaN or outside [0, 1], or an infinite eta.

    Limits: a reward between 0 and 1 counts as a success in part. Its variance is then taken for that of a coin with
    the same mean, the largest that there is: the posterior is too wide, never too narrow.

    Source: the inverse of the process reward of arXiv 2412.11006, section 3, for 0/1 rewards.
    """
    flat = torch.tensor([reward for rewards_K in rewards for reward in rewards_K], dtype=torch.float64)
    if not bool(((flat >= 0) & (flat <= 1)).all()):
        raise ValueError(
            "Rewards: got one that is NaN or outside [0, 1], where success rates have no posterior. Rescale the "
            "grader's rewards to [0, 1], or collect with allocation='fixed' and label with estimator='sample'."
        )
    counts = torch.tensor([len(rewards_K) for rewards_K in rewards])
    prefix_of = torch.arange(len(rewards)).repeat_interleave(counts)
    rates = implied_success_rate(flat, eta)
    successes = torch.zeros(len(rewards), dtype=torch.float64).index_add(0, prefix_of, rates)
    return successes, counts - successes


def fit_beta_prior(successes: Tensor, failures: Tensor, counts: Tensor | None = None) -> tuple[float, float]:
    r"""
    The Beta prior of success rates that a collection itself tells: the most probable one given all its prefixes.

    $$ \max_{\alpha, \beta} \; \sum_i \log \frac{B(\alpha + s_i, \beta + f_i)}{B(\alpha, \beta)}
    - \tfrac{1}{2} (\log^2 \alpha + \log^2 \beta) $$

    Args:
        successes, failures (`torch.Tensor`):
            Of each prefix, shape (P,), not negative; P may be 0.
        counts (`torch.Tensor`, *optional*):
            How many prefixes each of these stands for, shape (P,). Defaults to one each.

    Returns:
        `tuple[float, float]`: alpha and beta, in [0.02, 1000]. The second term, a prior of alpha and beta around the
        uniform distribution, is worth about one prefix: without prefixes, both are 1.

    Source: Robbins (1956), "An empirical Bayes approach to statistics"; the beta-binomial likelihood leaves out the
    number of ways to order what was seen, which hangs on why sampling stopped and not on alpha or beta.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Of the few outcomes that there are, each is computed once.
        outcomes = torch.stack([successes.double().cpu(), failures.double().cpu()]).clone()
        (successes, failures), outcome_of = outcomes.unique(dim=1, return_inverse=True)
        counts = torch.ones(len(outcome_of)) if counts is None else counts
        counts = torch.zeros(len(successes), dtype=torch.float64).index_add(0, outcome_of, counts.double().cpu())
        log = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([log], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def negative_log_posterior() -> Tensor:
            optimizer.zero_grad()
            alpha, beta = log.clamp(math.log(_WEAKEST), math.log(_STRONGEST)).exp()
            likelihood = _log_beta(alpha + successes, beta + failures) - _log_beta(alpha, beta)
            loss = log.square().sum() / 2 - likelihood @ counts
            loss.backward()
            return loss

        optimizer.step(negative_log_posterior)
    alpha, beta = log.detach().clamp(math.log(_WEAKEST), math.log(_STRONGEST)).exp().tolist()
    return alpha, beta


def posterior_value(
    successes: Tensor, failures: Tensor, eta: float, prior: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    r"""
    Mean and standard deviation of a prefix's entropy-regularised value, given its successes and failures.

    $$ \mathbb{E}[V_\eta(p)], \; \mathrm{sd}[V_\eta(p)] \quad \text{with} \quad
    p \sim \mathrm{Beta}(\alpha + s, \beta + f) $$

    Args:
        successes, failures (`torch.Tensor`):
            See [`success_counts`]; any shape.
        eta (`float`):
            Inverse reward temperature, finite.
        prior (`tuple[float, float]`):
            alpha and beta, see [`fit_beta_prior`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and standard deviation, float64, the shape of `successes`. The mean
        is the estimate with the least squared error on average over prefixes, and free of the bias that the logarithm
        of a finite mean has; of one prefix, it is drawn towards the others'. With many continuations it tends to the
        plain estimate, and the deviation to 0.

    Raises:
        `ValueError`: if eta is infinite: a maximum has no such posterior.
    """
    if not math.isfinite(eta):
        raise ValueError(f"eta: got {eta}, expected a finite number. A maximum has no posterior.")
    a, b = successes.double() + prior[0], failures.double() + prior[1]
    means, deviations = [], []
    for part_a, part_b in zip(a.flatten().split(4096), b.flatten().split(4096), strict=True):
        rates, weights = _beta_on_grid(part_a, part_b)
        values = soft_value_from_rate(rates, eta)
        means.append((weights * values).sum(-1))
        deviations.append((weights * (values - means[-1][:, None]).square()).sum(-1).sqrt())
    return torch.cat(means).view(a.shape), torch.cat(deviations).view(a.shape)


def expected_change(successes: Tensor, failures: Tensor, eta: float, prior: tuple[float, float]) -> Tensor:
    r"""
    By how much one more continuation is expected to change the posterior mean of a value, squared: equally, by how
    much it is expected to reduce the posterior variance.

    $$ \bar p (1 - \bar p) \left( \mathbb{E}[V_\eta \mid s + 1, f] - \mathbb{E}[V_\eta \mid s, f + 1] \right)^2,
    \qquad \bar p = \frac{\alpha + s}{\alpha + \beta + s + f} $$

    Args:
        successes, failures, eta, prior:
            See [`posterior_value`].

    Returns:
        `torch.Tensor`: float64, the shape of `successes`. At eta = 0 it is the posterior variance over
        \\( \alpha + \beta + s + f + 1 \\).

    Source: the law of total variance; Frazier, Powell and Dayanik (2008), "A knowledge-gradient policy for sequential
    information collection".
    """
    alpha, beta = prior
    successes, failures = successes.double(), failures.double()
    rate = (alpha + successes) / (alpha + beta + successes + failures)
    better = posterior_value(successes + 1, failures, eta, prior)[0]
    worse = posterior_value(successes, failures + 1, eta, prior)[0]
    return rate * (1 - rate) * (better - worse).square()


def precision_weights(label_std: Tensor, residual: float = 0.05) -> Tensor:
    r"""
    Weights of labels in a loss by how certain they are.

    $$ w = \frac{c}{c + \sigma^2} $$

    Args:
        label_std (`torch.Tensor`):
            Standard deviation of each label, any shape, not negative.
        residual (`float`, *optional*, defaults to `0.05`):
            c, the squared error that the model would make with labels free of noise. Large c weights all alike.

    Returns:
        `torch.Tensor`: weights in (0, 1], the shape of `label_std`, float32 or better; 1 where a label is exact.

    Source: generalised least squares (Aitken, 1935): a target with variance sigma^2 around a model that misses by c
    has the precision 1 / (c + sigma^2); times c, so that an exact label weighs 1.
    """
    return residual / (residual + at_least_float32(label_std).square())


def _beta_on_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rates and their probabilities that stand for Beta(a, b), a and b of shape (P,): two tensors (P, G)."""
    a, b = a[:, None], b[:, None]
    # Around the mode of the log-odds, and finer where the distribution is narrow: it is about as wide as this.
    width = (1 / a + 1 / b).sqrt().clamp_max(1)
    log_odds = a.log() - b.log() + width * _GRID
    log = a * F.logsigmoid(log_odds) + b * F.logsigmoid(-log_odds)  # p^a q^b: the density of the log-odds
    # Beyond the ends it falls off as e^(-a |t|) and e^(-b t): the last term stands for the geometric sum of all.
    log[:, :1] -= (-torch.expm1(-a * width * _STEP)).log()
    log[:, -1:] -= (-torch.expm1(-b * width * _STEP)).log()
    return log_odds.sigmoid(), log.softmax(-1)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
