"""Step scores as probabilities: how well they say what continuations of a prefix earn. Needs held-out rollouts with
continuations; the formulas are in `functional`, plots in `report`."""

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


@dataclass
class _ScoredPrefixes:
    """Scores of P prefixes beside the rewards of their continuations (prefixes may differ in their number), flat over
    solutions; `positions` are their steps from 1, `lengths` those of their whole solutions."""

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

    A prefix's label is its value at `eta` from all its K continuations. **K is finite**: the labels' noise is part of
    the Brier score, of the calibration error's bins and of the uncertainty; `value_error` shows how much and takes it
    off. Whole solutions have no continuation: they are apart, in `whole_solutions`, against their own reward.

    Args:
        rollouts ([`~erprm_trl.rollouts.RolloutDataset`]):
            Held-out questions with continuations, many of them for a close look; not those of the training.
        step_scores (`Sequence`):
            Of each solution of each question, from [`score_rollouts`].
        eta (`float`, *optional*, defaults to `0.0`):
            Which value the scores are to be: the eta of the training.
        aggregation (`str`, *optional*, defaults to `"last"`):
            What is compared, see [`~erprm_trl.functional.prefix_values`]: the score of a prefix's last step alone, as
            the labels of the training have it, or the aggregate of its steps so far, as picks and policies use it.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins of the score.

    Returns:
        `dict`: `eta`, `aggregation`, `prefixes`, `questions`, `continuations` (the fewest and the most of a prefix),
        `mean_score`, `mean_label`, `brier` (with `low` and `high`), `brier_parts` (which add up to it exactly), `ece`,
        `bins` (the reliability diagram), `auc_can_succeed` and `auc_can_succeed_within_questions` (of "some
        continuation succeeds"; `None` without both kinds), `by_position` and `by_length` (lists with the same
        figures), `value_error`, `recalibration` and `whole_solutions`.

    Raises:
        `ValueError`: without continuations, or with those that adaptive collections have; for scores of other
            solutions; for rewards outside [0, 1].
    """
    if rollouts.settings.shares_continuations:
        raise ValueError(
            f"{rollouts.path}: collected with allocation='adaptive' or reuse_continuations=True, expected the same "
            "number of continuations of each prefix, independent of the others: what is known here was stopped by its "
            "outcome. Collect held-out rollouts with allocation='fixed'."
        )
    rows = list(_scored_rows(rollouts, step_scores, aggregation))
    prefixes = _scored_prefixes(rollouts.path, rows)
    labels = _values(prefixes, eta)
    can_succeed = torch.tensor([max(row) > 0.5 for row in prefixes.rewards])
    counts = [len(row) for row in prefixes.rewards]
    scores, parts = prefixes.scores, brier_decomposition(prefixes.scores, labels, num_bins)
    squared = (scores - labels).square()
    bins = calibration_bins(scores, labels, num_bins)
    return {
        "eta": str(eta) if math.isinf(eta) else eta,
        "aggregation": aggregation,
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
        "value_error": _value_error(prefixes, squared, eta),
        "recalibration": _recalibration(prefixes, labels, num_bins),
        "whole_solutions": _whole_solutions(rows, num_bins),
    }


def _scored_prefixes(path: Path, rows: list[tuple[RolloutRow, list[float]]]) -> _ScoredPrefixes:
    scores, rewards, questions, positions, lengths, texts = [], [], [], [], [], {}
    for row, row_scores in rows:
        if row.lacks_continuations:
            raise ValueError(
                f"{path}: {row.name} has {len(row.steps)} steps and rewards for {len(row.prefix_rewards)} prefixes: "
                "it was collected with num_continuations=0. Collect held-out rollouts with num_continuations >= 2."
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
            f"{path}: got no prefix with continuations, expected solutions of two steps or more. Collect "
            "with num_continuations >= 2, and check the splitter."
        )
    flat = (torch.tensor(values) for values in (questions, positions, lengths))
    return _ScoredPrefixes(torch.tensor(scores, dtype=torch.float64), rewards, *flat, texts)


def _scored_rows(rollouts, step_scores: Sequence[Sequence[Sequence[float]]], aggregation: str):
    """The usable solutions, each with one score a prefix."""
    solutions = rollouts.solutions()
    if [len(question) for question in solutions] != [len(question) for question in step_scores]:
        raise ValueError(
            f"Step scores: got those of {sum(map(len, step_scores))} solutions of {len(step_scores)} questions, "
            f"expected {len(rollouts)} of {len(solutions)} as in {rollouts.path}. Score the same rollouts with "
            "`score_rollouts`."
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
    """Prefixes of the same number of continuations: their indices, and their rewards as (P, K)."""
    groups: dict[int, list[int]] = {}
    for index, rewards_K in enumerate(rewards):
        groups.setdefault(len(rewards_K), []).append(index)
    for group in groups.values():
        yield torch.tensor(group), torch.tensor([rewards[index] for index in group], dtype=torch.float64)


def _value_error(prefixes: _ScoredPrefixes, squared: Tensor, eta: float) -> dict[str, Any]:
    """
    Mean squared distance of scores from values: as measured, the part that is noise of K, and what is left.

    What is left is exact on average at eta = 0. At other finite eta the bias and the variance of the value are
    bootstrapped: approximate, and for large eta and small K far too little is taken off, because a prefix whose rare
    successes are not among its K looks exact. `success_rate_without_noise` is exact on average at every finite eta:
    the same for the success rate that the score stands for. Nothing says how noisy a maximum is: `None` at eta = +-inf
    and with a single continuation.
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


def _recalibration(prefixes: _ScoredPrefixes, labels: Tensor, num_bins: int) -> dict[str, Any]:
    """
    What two numbers on the log odds would mend, each half of the questions with the numbers fitted on the other.

    A Brier score that falls says that the scores are off as probabilities; their order, and every pick, stays. None
    where a half has no question.
    """
    sides = {index: _side(text) for index, text in prefixes.question_texts.items()}
    first = torch.tensor([sides[index] for index in prefixes.questions.tolist()]) == 0
    if first.all() or not first.any():
        return {"fits": None, "brier": None, "ece": None}
    mended, fits = torch.empty_like(prefixes.scores), []
    for fitted_on, applied_to in ((first, ~first), (~first, first)):
        scale, shift = fit_recalibration(prefixes.scores[fitted_on], labels[fitted_on])
        mended[applied_to] = recalibrate(prefixes.scores[applied_to], scale, shift)
        fits.append({"scale": scale, "shift": shift})
    return {
        "fits": fits,
        "brier": _mean_and_interval((mended - labels).square(), prefixes.questions),
        "ece": expected_calibration_error(mended, labels, num_bins).item(),
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
    """Mean over prefixes with its 95% bootstrap interval over questions: prefixes of a question move together."""
    _, question = questions.unique(return_inverse=True)
    counts = torch.bincount(question).double().numpy()
    sums = torch.bincount(question, weights=values).numpy()
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), num_resamples)
    return mean_and_interval(values.mean().item(), (drawn @ sums) / (drawn @ counts), (0.025, 0.975))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # NaN is no JSON
