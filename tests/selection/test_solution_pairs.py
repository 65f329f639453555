"""Pairs of whole solutions, on solutions written by hand."""

from erprm_trl.rollouts import RolloutRow
from erprm_trl.selection.solution_pairs import solution_pairs


def rows(*rewards, **entries):
    return [
        RolloutRow(
            chunk=0,
            question_index=0,
            solution_index=index,
            question="question",
            steps=[f"text {index}\n"],
            outcome_reward=reward,
            **entries,
        )
        for index, reward in enumerate(rewards)
    ]


def pairs_of(solutions, scores=None, rank_by="reward", min_margin=0.0, pairs_per_question=None):
    pairs, left_out, reason = solution_pairs(
        solutions, scores, rank_by=rank_by, min_margin=min_margin, pairs_per_question=pairs_per_question
    )
    return [(pair.chosen.strip(), pair.rejected.strip()) for pair in pairs], left_out, reason


def test_the_best_is_paired_with_the_worst_and_the_second_best_with_the_second_worst():
    pairs, left_out, reason = pairs_of(rows(0.2, 1.0, 0.0, 0.7, 0.5))
    assert pairs == [("text 1", "text 2"), ("text 3", "text 0")]  # 0.5 is in the middle
    assert not left_out and reason is None
    (pair, *_), _, _ = solution_pairs(rows(0.2, 1.0), None, rank_by="reward", min_margin=0, pairs_per_question=1)
    assert (pair.question, pair.prefix, pair.score_chosen, pair.score_rejected) == ("question", "", 1.0, 0.2)
    assert pair.chosen_ends and pair.rejected_ends


def test_with_rewards_of_0_and_1_there_are_as_many_pairs_as_the_rarer_kind():
    assert pairs_of(rows(1.0, 1.0, 0.0, 1.0))[0] == [("text 0", "text 2")]
    assert pairs_of(rows(1.0, 0.0, 0.0, 1.0))[0] == [("text 0", "text 2"), ("text 3", "text 1")]


def test_equal_rewards_are_ordered_by_score_and_equal_scores_by_reward():
    scores = [0.1, 0.9, 0.8, 0.3]
    assert pairs_of(rows(1.0, 1.0, 0.0, 0.0), scores, "reward")[0] == [("text 1", "text 3"), ("text 0", "text 2")]
    assert pairs_of(rows(1.0, 1.0, 0.0, 0.0), scores, "score")[0] == [("text 1", "text 0"), ("text 2", "text 3")]
    assert pairs_of(rows(0.0, 1.0, 1.0), [0.9, 0.9, 0.2], "score", pairs_per_question=1)[0] == [("text 1", "text 2")]


def test_margin_and_number():
    solutions = rows(1.0, 0.9, 0.2, 0.0)
    assert len(pairs_of(solutions)[0]) == 2
    assert pairs_of(solutions, min_margin=0.7)[0] == [("text 0", "text 3"), ("text 1", "text 2")]
    assert pairs_of(solutions, min_margin=0.8)[0] == [("text 0", "text 3")]
    assert pairs_of(solutions, min_margin=1.1)[::2] == ([], "below_margin")
    assert pairs_of(solutions, pairs_per_question=1)[0] == [("text 0", "text 3")]


def test_a_question_without_a_pair_has_a_reason():
    assert pairs_of(rows(1.0, 1.0))[::2] == ([], "all_equal")
    assert pairs_of(rows(1.0))[::2] == ([], "fewer_than_two_solutions")


def test_solutions_that_cannot_be_used_are_counted():
    solutions = rows(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    solutions[1].finished = False
    solutions[2].steps = []
    solutions[3].steps = solutions[0].steps  # the same text with another reward
    pairs, left_out, _ = pairs_of(solutions, [0.5, 0.4, 0.3, 0.2, None, 0.1])
    assert pairs == [("text 0", "text 5")]
    assert left_out == {"unfinished": 1, "no_steps": 1, "duplicate": 1, "too_long_for_reward_model": 1}


def test_solutions_without_rewards_are_compared_by_score():
    assert pairs_of(rows(None, None), [0.1, 0.9], "score")[0] == [("text 1", "text 0")]
