"""Pairs of steps after a shared prefix, on solutions written by hand."""

import math

import pytest
import torch

from erprm_trl.functional.value_posterior import fit_beta_prior, posterior_value
from erprm_trl.rollouts import RolloutRow
from erprm_trl.selection.step_pairs import StepValues, branching, step_pairs


def row(index, steps, reward, *prefix_rewards, **entries):
    return RolloutRow(
        chunk=0,
        question_index=0,
        solution_index=index,
        question="question",
        steps=steps,
        outcome_reward=reward,
        prefix_rewards=list(prefix_rewards),
        **entries,
    )


# Two solutions begin with A. After it, B is right in 3 of 4 continuations, C in 1 of 4, and D ends a wrong solution.
ROWS = [
    row(0, ["A", "B", "x"], 1.0, [1, 1, 0, 1], [1, 1, 1, 0]),
    row(1, ["A", "C", "y"], 0.0, [1, 0, 0, 1], [0, 0, 1, 0]),
    row(2, ["A", "D"], 0.0, [1, 0, 1, 1]),
    row(3, ["E", "z"], 1.0, [0, 0, 0, 1]),
]


def pairs_of(rows, *, eta=0.0, completion="rest", min_margin=0.0, num_std=0.0, number=None, scores=None, shared=False):
    values = StepValues([rows], eta, with_noise=num_std > 0, shared=shared)
    pairs, reasons = step_pairs(
        branching(rows, scores, shared=shared),
        values,
        completion=completion,
        min_margin=min_margin,
        num_std=num_std,
        pairs_per_question=number,
    )
    return pairs, reasons


def test_branches_are_the_different_steps_after_a_prefix():
    branches_of = branching(ROWS)
    assert {prefix: [branch.step for branch in branches] for prefix, branches in branches_of.items()} == {
        "": ["A", "E"],
        "A": ["B", "C", "D"],
    }
    step_a, step_e = branches_of[""]
    assert step_a.rewards == [1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1]  # pooled over three solutions
    assert step_e.rewards == [0, 0, 0, 1]
    assert [(branch.ends, branch.rewards) for branch in branches_of["A"]] == [
        (False, [1, 1, 1, 0]),
        (False, [0, 0, 1, 0]),
        (True, [0.0]),
    ]


def test_shared_rewards_count_once():
    same = [row(0, ["A", "B"], 1.0, [1, 0]), row(1, ["A", "C"], 0.0, [1, 0]), row(2, ["D", "x"], 0.0, [0, 0])]
    assert branching(same, shared=True)[""][0].rewards == [1, 0]
    assert branching(same)[""][0].rewards == [1, 0, 1, 0]


def test_a_solution_that_ends_with_a_step_is_another_branch_than_one_that_goes_on():
    rows = [row(0, ["A"], 0.0), row(1, ["A", "B"], 1.0, [1, 1])]
    assert [branch.ends for branch in branching(rows)[""]] == [True, False]


def test_the_last_step_of_an_unfinished_solution_is_no_branch():
    rows = [row(0, ["A", "cut o"], 0.0, [1, 0], finished=False), row(1, ["A", "B"], 1.0, [1, 1])]
    assert branching(rows) == {}


def test_pairs_worked_by_hand():
    pairs, reasons = pairs_of(ROWS)
    after_a, at_start = pairs  # 3/4 - 0 = 0.75 is larger than 8/12 - 1/4
    assert (after_a.prefix, after_a.chosen, after_a.rejected) == ("A", "Bx", "D")
    assert (after_a.score_chosen, after_a.score_rejected) == pytest.approx((0.75, 0.0))
    assert (at_start.prefix, at_start.chosen, at_start.rejected) == ("", "ABx", "Ez")
    assert (at_start.score_chosen, at_start.score_rejected) == pytest.approx((8 / 12, 0.25))
    assert not reasons
    (only,), reasons = pairs_of(ROWS, number=1)
    assert only == after_a and reasons == {"more_than_pairs_per_question": 1}


def test_eta_changes_the_values_and_so_the_margin():
    (pair,), reasons = pairs_of(ROWS, eta=math.inf, min_margin=0.5)  # the maximum of the rewards
    assert (pair.score_chosen, pair.score_rejected) == (1.0, 0.0)
    assert reasons == {"below_margin": 1}  # both first steps lead to a right answer once


def test_single_steps_say_whether_they_end_the_solution():
    pair, _ = pairs_of(ROWS, completion="step")[0]
    assert (pair.chosen, pair.rejected, pair.chosen_ends, pair.rejected_ends) == ("B", "D", False, True)


def test_the_rest_of_a_solution_must_not_contradict_the_value_of_its_step():
    rows = [row(0, ["A", "x"], 0.0, [1, 1, 1, 1]), row(1, ["B", "y"], 1.0, [0, 0, 0, 1])]
    assert pairs_of(rows) == ([], {"outcomes_disagree": 1})
    (pair,), _ = pairs_of(rows, completion="step")
    assert (pair.chosen, pair.rejected) == ("A", "B")
    # among several solutions with the better step, the right one is taken
    more = [*rows, row(2, ["A", "z"], 1.0, [1, 1, 1, 1])]
    assert [(pair.chosen, pair.rejected) for pair in pairs_of(more)[0] if not pair.prefix] == [("Az", "By")]


def test_the_rest_of_an_unfinished_solution_is_not_used():
    rows = [row(0, ["A", "x", "cu"], 0.0, [1, 1], [1, 0], finished=False), row(1, ["B", "y"], 0.0, [0, 0])]
    assert pairs_of(rows) == ([], {"unfinished": 1})
    assert len(pairs_of(rows, completion="step")[0]) == 1


def test_a_difference_within_the_noise_gives_no_pair():
    """The posterior of two success rates with a common prior, from the functions that the labels use."""
    counts = torch.tensor([[8.0, 4.0], [1.0, 3.0], [3.0, 1.0], [1.0, 3.0]])  # A, E, B, C
    prior = fit_beta_prior(*counts.T)
    means, deviations = posterior_value(*counts.T, 0.0, prior)
    limit = float((means[0] - means[1]) / torch.hypot(deviations[0], deviations[1]))
    pairs, reasons = pairs_of(ROWS, num_std=limit * 0.99)
    assert [pair.prefix for pair in pairs] == ["A", ""] and not reasons
    assert (pairs[1].score_chosen, pairs[1].score_rejected) == pytest.approx((means[0].item(), means[1].item()))
    pairs, reasons = pairs_of(ROWS, num_std=limit * 1.01)
    assert [pair.prefix for pair in pairs] == ["A"] and reasons == {"within_noise": 1}
    with pytest.raises(ValueError, match="finite"):
        pairs_of(ROWS, eta=math.inf, num_std=1.0)


def test_scores_take_the_place_of_values():
    scores = [[0.9, 0.2, 0.3], [0.9, 0.8, 0.1], [0.9, 0.5], []]  # the last solution was too long
    (pair,), _ = pairs_of(ROWS, scores=scores, completion="step")
    assert (pair.prefix, pair.chosen, pair.rejected) == ("A", "C", "B")
    assert (pair.score_chosen, pair.score_rejected) == (0.8, 0.2)
