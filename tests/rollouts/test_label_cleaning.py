"""Cleaner labels worked by hand: rates of questions, first failing prefixes, relative values, dropped solutions."""

import math
from collections import Counter

import pytest

from erprm_trl.rollouts import LabelOptions
from erprm_trl.rollouts.label_cleaning import (
    DISAGREEMENT,
    LOW_RATE,
    NO_VERDICT,
    QUESTIONS,
    cleaned_labels,
    first_failing_step,
    question_rates,
    relative_values,
    with_agreement,
    with_solved_questions,
)
from erprm_trl.rollouts.records import RolloutRow


def row(outcome, *prefix_rewards, question=0, solution=0, question_rewards=None):
    return RolloutRow(
        chunk=0,
        question_index=question,
        solution_index=solution,
        question=f"q{question}",
        steps=[f"s{step}\n" for step in range(len(prefix_rewards) + 1)],
        outcome_reward=outcome,
        prefix_rewards=[list(rewards) for rewards in prefix_rewards],
        question_rewards=question_rewards,
    )


RIGHT = row(1.0, [0, 1], [0, 0])
WRONG = row(0.0, [1, 1], [1, 0], [0, 0], [0, 1], [0, 0])  # fails first at step 2
LATE = row(0.0, [0, 1], [1, 1])  # every proper prefix succeeds: fails as a whole


def test_the_rate_of_a_question():
    rows = [
        row(1.0, [1, 0], [0, 0]),
        row(0.0, [0, 1], solution=1),  # question 0: the mean of (1 + 1)/3 and (0 + 1)/3
        row(1.0, [1, 1], question=1, question_rewards=[0, 0, 1, 0]),  # the bare question is continued: 1/4
        row(0.0, question=2),  # one step: its outcome alone
    ]
    assert question_rates(rows, 3).tolist() == [3 / 6, 1 / 4, 0.0]
    # Another policy wrote the solutions: the outcomes do not count, and question 2 has no reward.
    others = question_rates(rows, 3, own_samples=False).tolist()
    assert others[:2] == [2 / 4, 1 / 4] and math.isnan(others[2])


def test_the_rate_is_unbiased_for_a_known_policy():
    """A policy writes step a (0.25, then right with 0.9) or b (0.75, then right with 0.1): q = 0.25 * 0.9 + 0.75 * 0.1
    = 0.3. All 2 * 2 * 2 = 8 outcomes with K = 1, weighted by their probabilities."""
    mean = 0.0
    for share, rate in ((0.25, 0.9), (0.75, 0.1)):
        for outcome in (0, 1):
            for reward in (0, 1):
                weight = share * (rate if outcome else 1 - rate) * (rate if reward else 1 - rate)
                mean += weight * question_rates([row(float(outcome), [reward])], 1)[0]
    assert mean == pytest.approx(0.3)


def test_a_solution_of_a_single_step_counts_as_much_as_another():
    """A policy answers at once (0.5, always right) or in two steps (0.5, always wrong): q = 0.5. All four pairs of two
    solutions are equally likely, with K = 8 continuations of the first of two steps."""
    at_once, in_steps = row(1.0), row(0.0, [0] * 8)
    pairs = [[first, second] for first in (at_once, in_steps) for second in (at_once, in_steps)]
    assert [question_rates(pair, 1)[0] for pair in pairs] == [1.0, 0.5, 0.5, 0.0]


def test_the_first_failing_prefix():
    assert [first_failing_step(solution) for solution in (RIGHT, WRONG, LATE)] == [-1, 2, 2]
    assert first_failing_step(row(0.0, [0, 0], [1, 1])) == 0
    assert first_failing_step(row(0.0)) == 0
    assert first_failing_step(row(0.0, [0.5, 0.5], [0.6, 0])) == 0  # success is a reward above 0.5
    assert first_failing_step(row(0.0, [0.6, 0], [0.5, 0.5])) == 1


def test_relative_values_worked_by_hand():
    # p = 1/4, 1/2, 3/4 over q = 1/2: 1/2, 1, 1 (clipped)
    rewards = [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert relative_values(rewards, 0.5, 0.0) == [0.5, 1.0, 1.0, 0.0]
    # eta = 2: log(1 + (e^2 - 1) / 2) / 2 = log(4.194528) / 2 = 0.716890
    assert relative_values(rewards, 0.5, 2.0) == pytest.approx([0.716890, 1.0, 1.0, 0.0], abs=1e-6)
    assert relative_values(rewards, 0.5, math.inf) == [1.0, 1.0, 1.0, 0.0]
    assert relative_values(rewards, 0.5, -math.inf) == [0.0, 1.0, 1.0, 0.0]
    # eta = -2: 1 - log(1 + (e^2 - 1) / 2) / 2
    assert relative_values(rewards, 0.5, -2.0)[0] == pytest.approx(1 - 0.716890, abs=1e-6)
    assert relative_values(rewards, 0.0, 2.0) == [1.0, 1.0, 1.0, 0.0]  # the limit of a question that is never solved


def test_at_rate_1_relative_values_are_the_plain_values():
    from erprm_trl.rollouts.labels import sample_values

    rewards = [[0, 0.5, 1], [0.2, 0.2, 0.9], [0, 0, 1]]
    for eta in (0.0, 2.0, -3.0):
        assert relative_values(rewards, 1.0, eta) == pytest.approx(sample_values(rewards, eta), abs=1e-6)


@pytest.mark.parametrize(("rewards", "eta"), [([0, 2.0], 1.0), ([0, -0.5], 1.0), ([0, 0.5], math.inf)])
def test_relative_values_refuse_rewards_that_are_no_rates(rewards, eta):
    with pytest.raises(ValueError, match=r"relative: got the rewards .*Rescale the grader's rewards"):
        relative_values([rewards], 0.5, eta)


VALUES = [0.9, 0.8, 0.1, 0.4, 0.2, 0.0]


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [
        (0, [1, 1, 0.1, 0, 0, 0]),
        (1, [1, 0.8, 0.1, 0.4, 0, 0]),
        (2, [0.9, 0.8, 0.1, 0.4, 0.2, 0]),
        (9, VALUES),
    ],
)
def test_the_tolerance_keeps_values_near_the_first_failing_prefix(tolerance, expected):
    options = LabelOptions(error_tolerance=tolerance)
    assert cleaned_labels(WRONG, VALUES, None, options) == (expected, None)
    assert cleaned_labels(RIGHT, VALUES[:3], None, options) == (VALUES[:3], None)


def test_fixed_labels_have_no_deviation_and_the_last_label_stays():
    options = LabelOptions(error_tolerance=0, label_correct_solutions="ones")
    assert cleaned_labels(WRONG, VALUES, [0.3] * 6, options)[1] == [0.0, 0.0, 0.3, 0.0, 0.0, 0.3]
    assert cleaned_labels(RIGHT, [0.2, 0.3, 0.7], [0.1] * 3, options) == ([1.0, 1.0, 0.7], [0.0, 0.0, 0.1])
    only_ones = LabelOptions(label_correct_solutions="ones")
    assert cleaned_labels(WRONG, VALUES, None, only_ones) == (VALUES, None)


def test_questions_below_the_rate_are_counted():
    rows = [row(0.0, question=0), row(0.0, question=0, solution=1), row(1.0, question=1), row(1.0, question=2)]
    counts = Counter()
    kept = list(with_solved_questions(rows, 0.5, [0.0, 0.5, 0.49], counts))
    assert [solution.question_index for solution in kept] == [1]
    assert counts == {LOW_RATE: 3, QUESTIONS: 2}
    with pytest.raises(ValueError, match="question 2, solution 0: got no rewards.*include_question=True"):
        list(with_solved_questions(rows, 0.5, [1.0, 1.0, math.nan], counts))


@pytest.mark.parametrize(("tolerance", "kept"), [(0, [0, 1]), (1, [0, 1, 2])])
def test_agreement_with_a_judge(tolerance, kept):
    # first failing prefixes:  none   2      2     2     2     none
    rows = [RIGHT, WRONG, WRONG, WRONG, LATE, RIGHT]
    judged = [-1, 2, 1, 0, None, 0]  # an error close to none does not count as close
    counts, asked = Counter(), []

    def first_errors(batch):
        asked.append(len(batch))
        return judged

    result = list(with_agreement(rows, first_errors, tolerance, counts))
    assert [id(solution) for solution in result] == [id(rows[place]) for place in kept]
    assert counts == {NO_VERDICT: 1, DISAGREEMENT: 5 - len(kept)} and asked == [6]
