"""Applies label options to the rows of a collection: rates of questions, first failing prefixes, cleaner labels."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..functional.soft_values import implied_success_rate, soft_value_from_rate
from .label_options import LabelOptions
from .records import RolloutRow


NO_ERROR = -1  # first error of a solution without an error

JUDGED_TOGETHER = 256  # number of solutions that are passed to a judge at a time

# Keys of the counts. The last one counts questions, and the others count solutions.
KEPT = "kept"
LOW_RATE = "a question below min_question_rate"
DISAGREEMENT = "another first error than the judge"
NO_VERDICT = "no verdict of the judge"
QUESTIONS = "questions below min_question_rate"


@dataclass(kw_only=True)
class LabelCleaning:
    """
    Label options with what they need to know about a collection.

    Args:
        options ([`LabelOptions`]):
            The options.
        question_rates (`Callable`):
            Function that returns the rates of the questions at an eta ([`question_rates`]). It is called only if the
            options need them.
        eta (`float`, *optional*, defaults to `0.0`):
            Eta of the labels.
        first_errors (`Callable`, *optional*):
            See [`with_agreement`]. Only `agree_with` needs it.
        judge (`str`, *optional*):
            Name of the judge.
    """

    options: LabelOptions
    question_rates: Callable[[float], np.ndarray]
    eta: float = 0.0
    first_errors: Callable[[list[RolloutRow]], list[int | None]] | None = None
    judge: str | None = None

    def describe(self) -> dict[str, Any]:
        """The options that differ from their defaults, for manifests."""
        return self.options.to_json(self.judge)

    def kept(self, rows: Iterable[RolloutRow], counts: Counter[str]) -> Iterator[tuple[RolloutRow, float | None]]:
        """Yields the rows that get labels, with the rates of their questions if the options need them. `counts` is
        updated."""
        options = self.options
        rates = self.question_rates(self.eta) if options.relative else None
        if options.min_question_rate > 0:
            rows = with_solved_questions(rows, options.min_question_rate, self.question_rates(0.0), counts)
        if self.first_errors is not None:
            rows = with_agreement(rows, self.first_errors, options.agreement_tolerance, counts)
        for row in rows:
            counts[KEPT] += 1
            yield row, rate_of(row, rates) if options.relative else None


def question_rates(
    rows: Iterable[RolloutRow], num_questions: int, own_samples: bool = True, eta: float = 0.0
) -> np.ndarray:
    r"""
    Estimates how often the policy that writes continuations solves each question.

    If the bare question was continued, the rate is the mean of `question_rewards`. Otherwise it is the mean over the
    N solutions of the question of the rates of their first steps:

    $$ q = \frac{1}{N} \sum_{n=1}^{N} \frac{r_n + \sum_{k=1}^{K_n} r_{nk}}{1 + K_n} $$

    This is an unbiased estimate too: a solution is one more continuation of its first step, and the mean of the first
    steps' rates over sampled first steps is the rate of the question. Each solution has the same weight, because a
    solution of a single step, which has no continuations, would otherwise hardly count. There are N (K + 1) rewards,
    but only N first steps.

    Args:
        rows (`Iterable[RolloutRow]`):
            All rows of the collection, also those without labels.
        num_questions (`int`):
            Number of questions.
        own_samples (`bool`, *optional*, defaults to `True`):
            Whether the policy that continues has also written the solutions. Otherwise the rewards \\( r_n \\) of the
            solutions do not count, and the rate is that of the question after the first steps of another writer.
        eta (`float`, *optional*, defaults to `0.0`):
            Eta at which a reward between 0 and 1 becomes a success in part, as in [`relative_values`]. At 0, the
            rewards themselves are averaged. Rewards of 0 and 1 have the same rate at every eta.

    Returns:
        `numpy.ndarray`: float64 of shape (num_questions,), NaN for questions without rewards.

    Raises:
        `ValueError`: as [`relative_values`], if eta is not 0.
    """
    sums, counts = np.zeros(num_questions), np.zeros(num_questions)
    for row in rows:
        rewards = row.question_rewards
        if not rewards:
            rewards = row.prefix_rewards[0] if row.prefix_rewards else []
            if own_samples and row.outcome_reward is not None:
                rewards = [row.outcome_reward, *rewards]
        if rewards:
            sums[row.question_index] += sum(rewards) / len(rewards) if eta == 0 else _success_rate(rewards, eta)
            counts[row.question_index] += 1
    return np.divide(sums, counts, out=np.full(num_questions, np.nan), where=counts > 0)


def succeeds(rewards_K: Sequence[float]) -> bool:
    """Whether a continuation of a prefix has a reward above 0.5. Otherwise the prefix fails."""
    return any(reward > 0.5 for reward in rewards_K)


def first_failing_step(row: RolloutRow) -> int:
    """
    The index of the step that ends the first failing prefix of a row, or -1 for a right solution.

    The last step has no continuations, so a wrong solution fails there at the latest.
    """
    if row.is_right:
        return NO_ERROR
    failing = (step for step, rewards_K in enumerate(row.prefix_rewards) if not succeeds(rewards_K))
    return next(failing, len(row.prefix_rewards))


def relative_values(prefix_rewards: Sequence[Sequence[float]], question_rate: float, eta: float) -> list[float]:
    r"""
    The values of prefixes relative to their question. Both rates are success rates at the same eta.

    $$ V_\eta\left(\min\left(\frac{p_l}{q}, 1\right)\right) $$

    Args:
        prefix_rewards (`Sequence[Sequence[float]]`):
            Rewards in [0, 1] of the continuations of each prefix. The rate \\( p_l \\) of a prefix is the mean of its
            rewards. A reward between 0 and 1 counts as a success in part, such that the value at eta is preserved
            ([`~erprm_trl.functional.implied_success_rate`]).
        question_rate (`float`):
            Rate q of the question at this eta ([`question_rates`]). In the limit of 0, a prefix with any success has
            the value 1, and any other prefix has the value 0.
        eta (`float`):
            Inverse reward temperature. Infinite eta needs rewards of 0 and 1.

    Raises:
        `ValueError`: for rewards outside [0, 1], or rewards between 0 and 1 at infinite eta.
    """
    rates = [_success_rate(rewards_K, eta) for rewards_K in prefix_rewards]
    ratios = [float(rate > 0) if question_rate == 0 else min(rate / question_rate, 1.0) for rate in rates]
    return soft_value_from_rate(torch.tensor(ratios, dtype=torch.float64), eta).tolist()


def _success_rate(rewards_K: Sequence[float], eta: float) -> float:
    is_binary = all(reward in (0, 1) for reward in rewards_K)
    if not is_binary and not (np.isfinite(eta) and all(0 <= reward <= 1 for reward in rewards_K)):
        raise ValueError(
            f"relative: got the rewards {sorted(set(rewards_K))} at eta={eta}, expected rewards in [0, 1], and of 0 "
            "and 1 at infinite eta. Rescale the grader's rewards, or set relative=False."
        )
    if not is_binary:
        rewards_K = implied_success_rate(torch.tensor(rewards_K, dtype=torch.float64), eta).tolist()
    return sum(rewards_K) / len(rewards_K)


def cleaned_labels(
    row: RolloutRow, labels: Sequence[float], label_std: Sequence[float] | None, options: LabelOptions
) -> tuple[list[float], list[float] | None]:
    r"""
    Applies `label_correct_solutions` and `error_tolerance` to the labels of a row.

    With the tolerance d and the first failing prefix t of a wrong solution, the label of step l is

    $$ v_l = \begin{cases} 1 & l < t - d \\ V_\eta & |l - t| \le d \\ 0 & l > t + d \end{cases} $$

    The label of the last step is always the reward of the solution itself. Labels that are set to 0 or 1 have a
    standard deviation of 0.

    Args:
        row ([`RolloutRow`]):
            The row.
        labels (`Sequence[float]`):
            Labels of its steps.
        label_std (`Sequence[float]`, *optional*):
            Standard deviations of the labels.
        options ([`LabelOptions`]):
            The options.

    Returns:
        `tuple`: the new labels and standard deviations.
    """
    fixed: dict[int, float] = {}
    last = len(labels) - 1
    if row.is_right and options.label_correct_solutions == "ones":
        fixed = dict.fromkeys(range(last), 1.0)
    elif not row.is_right and options.error_tolerance is not None:
        failing, tolerance = first_failing_step(row), options.error_tolerance
        fixed = {step: float(step < failing) for step in range(last) if abs(step - failing) > tolerance}
    new_labels = [fixed.get(step, label) for step, label in enumerate(labels)]
    if label_std is None:
        return new_labels, None
    return new_labels, [0.0 if step in fixed else deviation for step, deviation in enumerate(label_std)]


def with_solved_questions(
    rows: Iterable[RolloutRow], min_question_rate: float, rates: np.ndarray, counts: Counter[str]
) -> Iterator[RolloutRow]:
    """
    Yields the rows of questions with at least a rate.

    Args:
        rows (`Iterable[RolloutRow]`):
            Rows with labels.
        min_question_rate (`float`):
            The lowest rate to keep.
        rates (`numpy.ndarray`):
            Rates of the questions, see [`question_rates`].
        counts (`Counter`):
            Is updated: the number of rows and of questions that are left out.
    """
    questions = set()
    for row in rows:
        if rate_of(row, rates) >= min_question_rate:
            yield row
        else:
            questions.add(row.question_index)
            counts[LOW_RATE] += 1
    counts[QUESTIONS] = len(questions)


def with_agreement(
    rows: Iterable[RolloutRow],
    first_errors: Callable[[list[RolloutRow]], list[int | None]],
    tolerance: int,
    counts: Counter[str],
) -> Iterator[RolloutRow]:
    """
    Yields the rows whose first failing prefix ends near the first error that a judge finds.

    Args:
        rows (`Iterable[RolloutRow]`):
            Rows with labels.
        first_errors (`Callable`):
            Function from rows to the first error of each according to the judge: -1 for no error, `None` without a
            verdict.
        tolerance (`int`):
            Largest difference in steps.
        counts (`Counter`):
            Is updated: the number of rows that are left out, by reason.
    """
    rows = iter(rows)
    while batch := list(islice(rows, JUDGED_TOGETHER)):
        for row, judged in zip(batch, first_errors(batch), strict=True):
            failing = first_failing_step(row)
            if judged is None:
                counts[NO_VERDICT] += 1
            elif judged == failing or (NO_ERROR not in (judged, failing) and abs(judged - failing) <= tolerance):
                yield row
            else:
                counts[DISAGREEMENT] += 1


def rate_of(row: RolloutRow, rates: np.ndarray) -> float:
    """The rate of a row's question. Raises a `ValueError` if it has no rewards."""
    rate = float(rates[row.question_index])
    if math.isnan(rate):
        raise ValueError(
            f"{row.name}: got no rewards that show how often the completer solves the question, expected some for "
            "min_question_rate and relative. Collect with include_question=True."
        )
    return rate
