"""Measures the calibration of step scores: how well they predict the rewards of a prefix's continuations. It needs
held-out rollouts with continuations."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...functional.advantages import prefix_values
from ...functional.score_metrics import (
    auc,
    auc_within_groups,
    brier_decomposition,
    brier_score,
    calibration_bins,
    expected_calibration_error,
)
from ...functional.soft_values import implied_success_rate, soft_value
from ...functional.value_noise import (
    bootstrap_value_noise,
    fit_recalibration,
    recalibrate,
    squared_error_without_noise,
)
from ...rollouts.records import RolloutRow
from ..bootstrap import mean_and_interval


MAX_RATE_ECE = 0.05  # expected calibration error up to which scores count as success rates


@dataclass
class _ScoredPrefixes:
    """The scores of P prefixes and the rewards of their continuations, flat over solutions. The number of
    continuations may differ. `positions` are the prefixes' numbers of steps, and `lengths` their solutions' numbers of
    steps."""

    scores: Tensor
    rewards: list[list[float]]
    questions: Tensor
    positions: Tensor
    lengths: Tensor
    question_texts: dict[int, str]


def measure_calibration(
    rollouts,
    step_scores: Sequence[Sequence[Sequence[float]]],
    *,
    eta: float = 0.0,
    aggregation: str = "last",
    num_bins: int = 10,
) -> dict[str, Any]:
    """
    Compares step scores with the values of prefixes in held-out rollouts.

    The label of a prefix is its value at `eta`, estimated from its K continuations. **K is finite**, so the labels are
    noisy. Their noise is part of the Brier score, of the calibration error and of the intervals. `value_error`
    estimates and removes it. Whole solutions have no continuations, so `whole_solutions` compares their scores with
    their own rewards. If the collection has no continuations (`num_continuations=0`), all measures compare whole
    solutions: each counts as a prefix with its own reward as the only continuation.

    Args:
        rollouts ([`~erprm_trl.rollouts.RolloutDataset`]):
            Rollouts of held-out questions. More continuations per prefix give less noise.
        step_scores (`Sequence`):
            Step scores of each solution of each question, from [`score_rollouts`].
        eta (`float`, *optional*, defaults to `0.0`):
            Inverse reward temperature of the labels. Use the `eta` of the training.
        aggregation (`str`, *optional*, defaults to `"last"`):
            Aggregation from a prefix's step scores to the score that is compared
            ([`~erprm_trl.functional.prefix_values`]). `"last"` compares the last step's score, as in the training.
            Others compare the aggregated score, as in selection and policy training.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins for the score.

    Returns:
        `dict`: with these entries:

        - `eta`, `aggregation`, `unit`, `prefixes`, `questions`: the settings, `"prefix"` or `"solution"`, and the
          number of prefixes (or solutions) and of questions.
        - `continuations`: the smallest (`fewest`) and largest (`most`) number of continuations of a prefix.
        - `mean_score`, `mean_label`: the means over prefixes.
        - `brier`: the Brier score with `low` and `high`, and `brier_parts`, which add up to it exactly.
        - `ece`: the expected calibration error, and `bins`, the reliability diagram.
        - `auc_can_succeed`, `auc_can_succeed_within_questions`: the AUC for the prefixes with a successful
          continuation, `None` if all prefixes or no prefix has one.
        - `by_position`, `by_length`: lists of these measures by number of steps of the prefix and of the solution.
        - `value_error`, `recalibration`, `whole_solutions`.
        - `rates`: whether the scores, converted from values at `eta`, are success rates: the root mean squared `error`
          without the noise of K continuations, the `ece`, and `are_rates`, which is true up to an ECE of 0.05. `None`
          at infinite eta, for other rewards than 0 and 1, and for whole solutions, whose value is the same at any eta.

    Raises:
        `ValueError`: for rollouts from adaptive collections, rollouts without continuations that are not graded,
            scores of other solutions, and rewards outside [0, 1].
    """
    if rollouts.settings.shares_continuations:
        raise ValueError(
            f"{rollouts.path}: got rollouts that were collected with allocation='adaptive' or "
            "reuse_continuations=True, expected independent continuations, whose number does not depend on their "
            "rewards. Collect held-out rollouts with allocation='fixed'."
        )
    rows = list(_scored_rows(rollouts, step_scores, aggregation))
    whole = rollouts.settings.num_continuations == 0 and not any(row.prefix_rewards for row, _ in rows)
    prefixes = _whole_prefixes(rollouts.path, rows) if whole else _scored_prefixes(rollouts.path, rows)
    labels = _values(prefixes, eta)
    can_succeed = torch.tensor([max(row) > 0.5 for row in prefixes.rewards])
    counts = [len(row) for row in prefixes.rewards]
    scores, parts = prefixes.scores, brier_decomposition(prefixes.scores, labels, num_bins)
    squared = (scores - labels).square()
    value_error = _value_error(prefixes, squared, eta)
    bins = calibration_bins(scores, labels, num_bins)
    return {
        "eta": str(eta) if math.isinf(eta) else eta,
        "aggregation": aggregation,
        "unit": "solution" if whole else "prefix",
        "prefixes": len(scores),
        "questions": len(prefixes.questions.unique()),
        "continuations": {"fewest": min(counts), "most": max(counts)},
        "mean_score": scores.mean().item(),
        "mean_label": labels.mean().item(),
        "brier": _mean_and_interval(squared, prefixes.questions),
        "brier_parts": {name: part.item() for name, part in parts.items()},
        "ece": expected_calibration_error(scores, labels, num_bins).item(),
        "bins": [
            {"count": count, "mean_score": _or_none(score), "mean_label": _or_none(label)}
            for count, score, label in zip(*(values.tolist() for values in bins), strict=True)
        ],
        "auc_can_succeed": _or_none(auc(scores, can_succeed).item()),
        "auc_can_succeed_within_questions": _or_none(
            auc_within_groups(scores, can_succeed, prefixes.questions).item()
        ),
        "by_position": _by("position", prefixes.positions, scores, labels, can_succeed, num_bins),
        "by_length": _by("length", prefixes.lengths, scores, labels, can_succeed, num_bins),
        "value_error": value_error,
        "rates": None if whole else _rates(prefixes, eta, value_error["success_rate_without_noise"], num_bins),
        "recalibration": _recalibration(prefixes, labels, num_bins),
        "whole_solutions": _whole_solutions(rows, num_bins),
    }


def _scored_prefixes(path: Path, rows: list[tuple[RolloutRow, list[float]]]) -> _ScoredPrefixes:
    scores, rewards, questions, positions, lengths, texts = [], [], [], [], [], {}
    for row, row_scores in rows:
        if row.lacks_continuations:
            raise ValueError(
                f"{path}: {row.name} has {len(row.steps)} steps and rewards for {len(row.prefix_rewards)} prefixes, "
                "because it was collected with num_continuations=0, expected rewards for every prefix. Collect "
                "held-out rollouts with num_continuations >= 2."
            )
        for position, (score, rewards_K) in enumerate(zip(row_scores, row.prefix_rewards, strict=False), start=1):
            scores.append(score)
            rewards.append([float(reward) for reward in rewards_K])
            questions.append(row.question_index)
            positions.append(position)
            lengths.append(len(row.steps))
        texts[row.question_index] = row.question
    if not scores:
        raise ValueError(
            f"{path}: got no prefix with continuations, expected solutions with at least two steps. Collect "
            "with num_continuations >= 2, and check the splitter."
        )
    flat = (torch.tensor(values) for values in (questions, positions, lengths))
    return _ScoredPrefixes(torch.tensor(scores, dtype=torch.float64), rewards, *flat, texts)


def _whole_prefixes(path: Path, rows: list[tuple[RolloutRow, list[float]]]) -> _ScoredPrefixes:
    """Whole solutions in place of prefixes, each with its own reward as the only continuation."""
    ungraded = next((row for row, _ in rows if not row.is_graded), None)
    if not rows or ungraded is not None:
        raise ValueError(
            f"{path}: got {'no solution with steps' if ungraded is None else f'{ungraded.name} without a reward'} and "
            "no continuations, expected rewards for every prefix, or graded solutions. Collect held-out rollouts with "
            "num_continuations >= 2, or with a grading."
        )
    lengths = torch.tensor([len(row.steps) for row, _ in rows])
    return _ScoredPrefixes(
        torch.tensor([scores[-1] for _, scores in rows], dtype=torch.float64),
        [[float(row.outcome_reward)] for row, _ in rows],
        torch.tensor([row.question_index for row, _ in rows]),
        lengths,
        lengths,
        {row.question_index: row.question for row, _ in rows},
    )


def _scored_rows(rollouts, step_scores: Sequence[Sequence[Sequence[float]]], aggregation: str):
    """The usable solutions, each with one score per prefix."""
    solutions = rollouts.solutions()
    if [len(question) for question in solutions] != [len(question) for question in step_scores]:
        raise ValueError(
            f"Step scores: got scores of {sum(map(len, step_scores))} solutions of {len(step_scores)} questions, "
            f"expected {len(rollouts)} solutions of {len(solutions)} questions as in {rollouts.path}. Score the same "
            "rollouts with `score_rollouts`."
        )
    for question, question_scores in zip(solutions, step_scores, strict=True):
        for row, scores in zip(question, question_scores, strict=True):
            if not row.is_usable:
                continue
            if len(scores) != len(row.steps):
                raise ValueError(
                    f"Step scores: got {len(scores)} for {row.name} with {len(row.steps)} steps, expected one per "
                    "step. Score the same rollouts with `score_rollouts`."
                )
            scores = torch.tensor([list(scores)], dtype=torch.float64)
            yield row, prefix_values(scores, torch.ones_like(scores, dtype=torch.bool), aggregation)[0].tolist()


def _values(prefixes: _ScoredPrefixes, eta: float) -> Tensor:
    values = torch.empty_like(prefixes.scores)
    for index, rewards in _by_count(prefixes.rewards):
        values[index] = soft_value(rewards, eta)
    return values


def _by_count(rewards: list[list[float]]):
    """Groups prefixes by their number of continuations. Yields their indices (P,) and rewards (P, K)."""
    groups: dict[int, list[int]] = {}
    for index, rewards_K in enumerate(rewards):
        groups.setdefault(len(rewards_K), []).append(index)
    for group in groups.values():
        yield torch.tensor(group), torch.tensor([rewards[index] for index in group], dtype=torch.float64)


def _value_error(prefixes: _ScoredPrefixes, squared: Tensor, eta: float) -> dict[str, Any]:
    """
    Mean squared error of the scores: as measured, the part that is noise from finite K, and the rest.

    The rest is unbiased at eta = 0. At other finite eta, the bias and the variance of the value are bootstrapped. This
    is approximate. For large eta and small K it removes far too little noise, because a prefix whose rare successes
    are not among its K continuations looks noise-free. `success_rate_without_noise` is the error of the implied
    success rate, and is unbiased at every finite eta. The noise of a maximum cannot be estimated, so the results are
    `None` at eta = +-inf, and also with a single continuation.
    """
    result: dict[str, Any] = {
        "method": None,
        "squared": _mean_and_interval(squared, prefixes.questions),
        "noise": None,
        "squared_without_noise": None,
        "success_rate_without_noise": None,
    }
    if math.isinf(eta) or min(map(len, prefixes.rewards)) < 2:
        return result
    of_value, of_rate = torch.empty_like(squared), torch.empty_like(squared)
    for index, rewards in _by_count(prefixes.rewards):
        scores = prefixes.scores[index]
        rates = implied_success_rate(scores, eta), implied_success_rate(rewards, eta)
        of_value[index] = of_rate[index] = squared_error_without_noise(*rates)
        if eta != 0:
            bias, variance = bootstrap_value_noise(rewards, eta)
            of_value[index] = (scores - (soft_value(rewards, eta) - bias)).square() - variance
    result["method"] = "unbiased" if eta == 0 else "bootstrap"
    result["noise"] = (squared - of_value).mean().item()
    result["squared_without_noise"] = _mean_and_interval(of_value, prefixes.questions)
    result["success_rate_without_noise"] = _mean_and_interval(of_rate, prefixes.questions)
    return result


def _rates(
    prefixes: _ScoredPrefixes, eta: float, squared_error: dict[str, float] | None, num_bins: int
) -> dict[str, Any] | None:
    """
    How far the scores, converted from `eta` to success rates, are from the success rates of prefixes.

    - `error`: the root mean squared error without the noise of K continuations, `None` for a single continuation.
    - `ece`: the expected calibration error. The noise of continuations cancels within a bin.
    - `are_rates`: whether `ece` is at most `MAX_RATE_ECE`. Then scores can be read at other etas: if the mean reward
      of all prefixes with the score p is p, then `soft_value_from_rate(p, eta)` is the value of the rewards of these
      prefixes.
    """
    if math.isinf(eta) or any(reward not in (0.0, 1.0) for rewards_K in prefixes.rewards for reward in rewards_K):
        return None
    observed = torch.tensor([sum(rewards_K) / len(rewards_K) for rewards_K in prefixes.rewards], dtype=torch.float64)
    ece = expected_calibration_error(implied_success_rate(prefixes.scores, eta), observed, num_bins).item()
    error = None
    if squared_error is not None:  # the estimate of a small error may be negative
        error = {name: math.sqrt(max(0.0, value)) for name, value in squared_error.items()}
    return {"error": error, "ece": ece, "are_rates": ece <= MAX_RATE_ECE}


def _recalibration(prefixes: _ScoredPrefixes, labels: Tensor, num_bins: int) -> dict[str, Any]:
    """
    The Brier score and the ECE after recalibrating the log-odds by a scale and a shift. They are fitted on one half of
    the questions and applied to the other half, for both halves.

    A lower Brier score means that the scores are not calibrated as probabilities. Recalibration does not change their
    order. The results are `None` if one half has no question.
    """
    sides = {index: _side(text) for index, text in prefixes.question_texts.items()}
    first = torch.tensor([sides[index] for index in prefixes.questions.tolist()]) == 0
    if first.all() or not first.any():
        return {"fits": None, "brier": None, "ece": None}
    recalibrated, fits = torch.empty_like(prefixes.scores), []
    for fitted_on, applied_to in ((first, ~first), (~first, first)):
        scale, shift = fit_recalibration(prefixes.scores[fitted_on], labels[fitted_on])
        recalibrated[applied_to] = recalibrate(prefixes.scores[applied_to], scale, shift)
        fits.append({"scale": scale, "shift": shift})
    return {
        "fits": fits,
        "brier": _mean_and_interval((recalibrated - labels).square(), prefixes.questions),
        "ece": expected_calibration_error(recalibrated, labels, num_bins).item(),
    }


def _side(question: str) -> int:
    return hashlib.sha256(question.encode()).digest()[0] % 2


def _whole_solutions(rows: list[tuple[RolloutRow, list[float]]], num_bins: int) -> dict[str, Any]:
    scores = torch.tensor([scores[-1] for _, scores in rows], dtype=torch.float64)
    rewards = torch.tensor([float(row.outcome_reward) for row, _ in rows], dtype=torch.float64)
    return _figures(scores, rewards, rewards > 0.5, num_bins)


def _by(name: str, keys: Tensor, scores: Tensor, labels: Tensor, can_succeed: Tensor, num_bins: int) -> list[dict]:
    chosen = [(key, keys == key) for key in keys.unique().tolist()]
    return [{name: key, **_figures(scores[here], labels[here], can_succeed[here], num_bins)} for key, here in chosen]


def _figures(scores: Tensor, labels: Tensor, positive: Tensor, num_bins: int) -> dict[str, Any]:
    return {
        "count": len(scores),
        "mean_score": scores.mean().item(),
        "mean_label": labels.mean().item(),
        "brier": brier_score(scores, labels).item(),
        "ece": expected_calibration_error(scores, labels, num_bins).item(),
        "auc_can_succeed": _or_none(auc(scores, positive).item()),
    }


def _mean_and_interval(values: Tensor, questions: Tensor, num_resamples: int = 2000) -> dict[str, float]:
    """Mean over prefixes with its 95% bootstrap interval. Questions are resampled, because the prefixes of a question
    are not independent."""
    _, question = questions.unique(return_inverse=True)
    counts = torch.bincount(question).double().numpy()
    sums = torch.bincount(question, weights=values).numpy()
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), num_resamples)
    return mean_and_interval(values.mean().item(), (drawn @ sums) / (drawn @ counts), (0.025, 0.975))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON cannot hold NaN
