"""Accuracy against the number of samples for several selection methods, with bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..functional.aggregation import AGGREGATIONS, aggregate
from ..functional.score_metrics import auc_within_groups
from ..io.text_lists import check_texts
from ..reward_model import scoring
from ..rollouts.records import RolloutRow, as_rows
from ..steps import clean_steps
from .best_of import best_of_n_per_question, pass_at_n_per_question
from .bootstrap import bootstrap_interval
from .voting import group_answers, majority_at_n_per_question, weighted_majority_at_n_per_question


def selection_curves(
    solutions: Sequence[Sequence[RolloutRow | Mapping[str, Any]]],
    step_scores: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    ns: Sequence[int],
    *,
    aggregations: Sequence[str] = AGGREGATIONS,
    equivalent: Callable[[str, str], bool] | None = None,
    level: float = 0.95,
    num_subsets: int = 13_000,
) -> dict[str, Any]:
    """
    Compares methods that select one of n sampled solutions.

    Args:
        solutions (`Sequence[Sequence[RolloutRow]]`):
            Solutions of each question, from [`~erprm_trl.rollouts.RolloutDataset.solutions`], or mappings with
            `outcome_reward` and `prediction`.
        step_scores (`Mapping[str, ...]`):
            Step scores of each solution of each question, by name of a reward model. Solutions without steps rank
            last.
        ns (`Sequence[int]`):
            Numbers of samples, each at most the number of solutions of every question.
        aggregations (`Sequence[str]`, *optional*):
            Aggregations from step scores to a solution's score. Defaults to all four.
        equivalent (`Callable`, *optional*):
            Function that tells whether two final answers are equal, for the votes
            ([`~erprm_trl.rollouts.Grader.equivalent`]). By default, answers are equal if they differ only in markup
            and units, see [`group_answers`].
        level (`float`, *optional*, defaults to `0.95`):
            Level of the bootstrap intervals over questions.
        num_subsets (`int`, *optional*, defaults to `13_000`):
            Maximum number of n-subsets per question for the weighted votes, see [`weighted_majority_at_n`]. A question
            with more n-subsets uses this number of random subsets, and other questions are exact (16 samples have at
            most 12,870 subsets). All other curves are always exact.

    Returns:
        `dict`: the curves `pass` and `majority`, and `models`. The latter holds, by name and aggregation, the curves
        `best_of_n` and `weighted_majority`, and `auc_within_questions`, the AUC of the solutions' scores (`None` if no
        question has both right and wrong solutions). A curve is `{n: {"mean", "low", "high"}}`.
    """
    check_texts("aggregations", aggregations)
    rows_QN = as_rows(solutions, "outcome_reward", "prediction")
    correct = [[float(row.is_right) for row in rows_N] for rows_N in rows_QN]
    groups = [group_answers([row.prediction for row in rows_N], equivalent) for rows_N in rows_QN]
    models: dict[str, Any] = {}
    for name, scores in step_scores.items():
        models[name] = {}
        for method in aggregations:
            chosen = [rank_solutions(question, method) for question in scores]
            weights = [[max(score, 0.0) for score in question] for question in chosen]
            models[name][method] = {
                "best_of_n": _curve(best_of_n_per_question(chosen, correct, ns), ns, level),
                "weighted_majority": _curve(
                    weighted_majority_at_n_per_question(groups, weights, correct, ns, num_subsets), ns, level
                ),
                "auc_within_questions": _auc_within(chosen, correct),
            }
    return {
        "pass": _curve(pass_at_n_per_question(correct, ns), ns, level),
        "majority": _curve(majority_at_n_per_question(groups, correct, ns), ns, level),
        "models": models,
    }


def score_rollouts(scorer, rollouts, *, eta: float | None = None) -> list[list[list[float]]]:
    """
    Scores the steps of all solutions of a [`~erprm_trl.rollouts.RolloutDataset`], for [`selection_curves`].

    Args:
        scorer ([`~erprm_trl.reward_model.StepScorer`] or [`~erprm_trl.reward_model.ScoringBackend`]):
            Reward model. It scores the steps of the rollouts, and its own splitter is not used.
        rollouts ([`~erprm_trl.rollouts.RolloutDataset`]):
            Dataset with the solutions.
        eta (`float`, *optional*):
            Eta at which the scores are read, see [`~erprm_trl.reward_model.StepScorer`].

    Returns:
        `list[list[list[float]]]`: one score per step, by question and solution.
    """
    splitter = rollouts.settings.splitter
    solutions = rollouts.solutions()
    rows = [row for question in solutions for row in question]
    steps = [clean_steps(row.steps, splitter) for row in rows]
    scores = iter(scoring.StepScorer.of(scorer).score([row.question for row in rows], steps, eta=eta))
    return [[next(scores) for _ in question] for question in solutions]


def rank_solutions(question: Sequence[Sequence[float]], method: str) -> list[float]:
    """Aggregates step scores to one score per solution of a question, -inf for a solution without steps."""
    with_steps = [index for index, steps in enumerate(question) if len(steps)]
    scores = [-np.inf] * len(question)
    if with_steps:
        values = aggregate([question[index] for index in with_steps], method).tolist()
        for index, value in zip(with_steps, values, strict=True):
            scores[index] = value
    return scores


def _curve(per_question: np.ndarray, ns: Sequence[int], level: float) -> dict[int, dict[str, float]]:
    curve = {}
    for column, n in enumerate(ns):
        low, high = bootstrap_interval(per_question[:, column], level=level)
        curve[n] = {"mean": float(per_question[:, column].mean()), "low": low, "high": high}
    return curve


def _auc_within(scores: list[list[float]], correct: list[list[float]]) -> float | None:
    groups = [index for index, question in enumerate(scores) for _ in question]
    flat = torch.tensor([score for question in scores for score in question], dtype=torch.float64)
    positive = torch.tensor([value > 0.5 for question in correct for value in question])
    value = float(auc_within_groups(flat, positive, torch.tensor(groups)))
    return None if np.isnan(value) else value  # JSON cannot hold NaN
