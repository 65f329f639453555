"""The posterior of a prefix's value after a few graded continuations, and the expected effect of one more
continuation. Pure tensor functions in float64.

The success rate of each prefix has a Beta prior. A reward between 0 and 1 counts as a success in part
([`~erprm_trl.functional.implied_success_rate`]). The posterior depends on the observed rewards, and not on the rule
that stopped the sampling. It therefore stays unbiased when sampling stops early, unlike the mean of the sample.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_float32
from .soft_values import implied_success_rate, soft_value_from_rate


# Integrals over the success rate are computed over its log-odds. There the integrands are smooth and fall off
# exponentially, so a sum over an even grid converges faster than any power of the grid step.
_STEP = 0.25
_GRID = torch.arange(-40, 40 + _STEP / 2, _STEP, dtype=torch.float64)
_WEAKEST, _STRONGEST = 0.02, 1000.0


def success_counts(rewards: Sequence[Sequence[float]], eta: float) -> tuple[Tensor, Tensor]:
    r"""
    Counts successes and failures among the continuations of each prefix, such that the value at eta is preserved.

    $$ s = \sum_{k=1}^{K} \frac{e^{\eta r_k} - 1}{e^{\eta} - 1}, \qquad f = K - s $$

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Rewards in [0, 1], one list per prefix. Prefixes may have different numbers K of continuations, including
            0.
        eta (`float`):
            Inverse reward temperature, finite. Rewards of 0 and 1 count the same at every eta.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: s and f, float64 of shape (P,). They are whole numbers if all rewards are
        0 or 1.

    Raises:
        `ValueError`: for a reward that is NaN or outside [0, 1], or an infinite eta.

    Limits: a reward between 0 and 1 counts as a success in part. The posterior then assumes the variance of a 0/1
    reward with the same mean, which is the largest possible. It may be too wide, but never too narrow.

    Source: the inverse of the process reward of arXiv 2412.11006, section 3, for 0/1 rewards.
    """
    flat = torch.tensor([reward for rewards_K in rewards for reward in rewards_K], dtype=torch.float64)
    if not bool(((flat >= 0) & (flat <= 1)).all()):
        raise ValueError(
            "Rewards: got a reward that is NaN or outside [0, 1], expected all of them in [0, 1]. Rescale the "
            "grader's rewards to [0, 1], or collect with allocation='fixed' and label with estimator='sample'."
        )
    counts = torch.tensor([len(rewards_K) for rewards_K in rewards])
    prefix_of = torch.arange(len(rewards)).repeat_interleave(counts)
    rates = implied_success_rate(flat, eta)
    successes = torch.zeros(len(rewards), dtype=torch.float64).index_add(0, prefix_of, rates)
    return successes, counts - successes


def fit_beta_prior(successes: Tensor, failures: Tensor, counts: Tensor | None = None) -> tuple[float, float]:
    r"""
    Fits the Beta prior of the success rates to all prefixes of a collection (maximum a posteriori).

    $$ \max_{\alpha, \beta} \; \sum_i \log \frac{B(\alpha + s_i, \beta + f_i)}{B(\alpha, \beta)}
    - \tfrac{1}{2} (\log^2 \alpha + \log^2 \beta) $$

    Args:
        successes, failures (`torch.Tensor`):
            Successes and failures of each prefix, of shape (P,), not negative. P may be 0.
        counts (`torch.Tensor`, *optional*):
            Number of prefixes that have these successes and failures, of shape (P,). Defaults to 1 for each.

    Returns:
        `tuple[float, float]`: alpha and beta, in [0.02, 1000]. The second term of the objective is a prior of alpha
        and beta around the uniform distribution. It weighs about as much as one prefix: without prefixes, both are 1.

    Source: Robbins (1956), "An empirical Bayes approach to statistics". The beta-binomial likelihood omits the number
    of possible orders of the outcomes, which depends on the stopping rule but not on alpha or beta.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Many prefixes share the same outcome, so the likelihood is computed once per distinct outcome.
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
    Posterior mean and standard deviation of a prefix's entropy-regularised value, given its successes and failures.

    $$ \mathbb{E}[V_\eta(p)], \; \mathrm{sd}[V_\eta(p)] \quad \text{with} \quad
    p \sim \mathrm{Beta}(\alpha + s, \beta + f) $$

    Args:
        successes, failures (`torch.Tensor`):
            Successes s and failures f of each prefix, of any shape, see [`success_counts`].
        eta (`float`):
            Inverse reward temperature, finite.
        prior (`tuple[float, float]`):
            alpha and beta of the Beta prior, see [`fit_beta_prior`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and standard deviation, in float64, with the shape of `successes`. On
        average over prefixes, the mean has the smallest squared error of all estimates and no bias, unlike the
        logarithm of a finite mean. For a single prefix, it is shrunk towards the mean of the prior. With many
        continuations it converges to the plain estimate, and the standard deviation to 0.

    Raises:
        `ValueError`: if eta is infinite or NaN.
    """
    if not math.isfinite(eta):
        raise ValueError(
            f"eta: got {eta}, expected a finite number, because a maximum has no posterior. Pass a finite eta, or "
            "label with estimator='sample'."
        )
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
    Expected squared change of a value's posterior mean by one more continuation. It equals the expected reduction of
    the posterior variance.

    $$ \bar p (1 - \bar p) \left( \mathbb{E}[V_\eta \mid s + 1, f] - \mathbb{E}[V_\eta \mid s, f + 1] \right)^2,
    \qquad \bar p = \frac{\alpha + s}{\alpha + \beta + s + f} $$

    Args:
        successes, failures, eta, prior:
            See [`posterior_value`].

    Returns:
        `torch.Tensor`: float64, with the shape of `successes`. At eta = 0 it is the posterior variance divided by
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
    Weights labels in a loss by their precision.

    $$ w = \frac{c}{c + \sigma^2} $$

    Args:
        label_std (`torch.Tensor`):
            Standard deviation sigma of each label, of any shape, not negative.
        residual (`float`, *optional*, defaults to `0.05`):
            Squared error c that the model would have with labels free of noise. With large c, all labels have nearly
            the same weight.

    Returns:
        `torch.Tensor`: weights in (0, 1] with the shape of `label_std`, in float32, or in float64 if the input is. An
        exact label has weight 1.

    Source: generalised least squares (Aitken, 1935). A target with variance sigma^2, predicted by a model with squared
    error c, has the precision 1 / (c + sigma^2). The factor c gives an exact label weight 1.
    """
    return residual / (residual + at_least_float32(label_std).square())


def _beta_on_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Approximates Beta(a, b), with a and b of shape (P,), by success rates and their probabilities, two tensors of
    shape (P, G)."""
    a, b = a[:, None], b[:, None]
    # The grid is centred on the mode of the log-odds. Its step follows the approximate width of the distribution.
    width = (1 / a + 1 / b).sqrt().clamp_max(1)
    log_odds = a.log() - b.log() + width * _GRID
    log = a * F.logsigmoid(log_odds) + b * F.logsigmoid(-log_odds)  # p^a q^b: the density of the log-odds
    # Beyond the ends the density falls off as e^(-a |t|) and e^(-b t), so the end points get the geometric sum of the
    # tails.
    log[:, :1] -= (-torch.expm1(-a * width * _STEP)).log()
    log[:, -1:] -= (-torch.expm1(-b * width * _STEP)).log()
    return log_odds.sigmoid(), log.softmax(-1)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
