"""The selection of solutions worked by hand, the questions of a round, and the folder of a round."""

import json
from dataclasses import asdict

import pytest

from erprm_trl.policy.raft.rounds import (
    RoundFolder,
    agreement,
    pick_solutions,
    questions_of_round,
    read_rows,
    round_metrics,
    round_seed,
    write_rows,
)
from erprm_trl.reward_model.prm_format import PRMFormat
from erprm_trl.reward_model.scoring.scorer import solution_scores
from erprm_trl.rollouts import Question, RolloutRow


def row(question, text, reward=None, finished=True, num_tokens=4):
    return RolloutRow(
        chunk=0,
        question_index=question,
        solution_index=0,
        question=f"question {question}",
        steps=[step + "\n" for step in text.split("|")] if text else [],
        outcome_reward=reward,
        finished=finished,
        num_tokens=num_tokens,
    )


# Question 0: right, wrong and a duplicate. 1: all right. 2: all wrong. 3: an unfinished solution.
ROWS = [
    row(0, "a|b", 1.0),
    row(0, "a|c", 0.0),
    row(0, "a|b", 1.0),
    row(0, "d", 1.0),
    row(1, "e", 1.0),
    row(1, "f", 1.0),
    row(2, "g", 0.0),
    row(2, "h", 0.0),
    row(3, "i", 0.0, finished=False),
    row(3, "j", 1.0),
]
SCORES = [0.5, 0.9, 0.5, 0.7, 0.2, 0.8, 0.6, 0.6, None, 0.1]
UNUSABLE = [None] * 8 + ["unfinished", None]


@pytest.mark.parametrize(
    ("options", "kept", "dropped"),
    [
        # the best of each question, and the first of equal scores (6 and 7)
        ({}, [1, 5, 6, 9], {"duplicate": 1, "not_best": 4, "unfinished": 1}),
        ({"top_k": 2}, [1, 3, 5, 4, 6, 7, 9], {"duplicate": 1, "not_best": 1, "unfinished": 1}),
        # without deduplication, the duplicate takes part and is third
        ({"top_k": 3, "deduplicate": False}, [1, 3, 0, 5, 4, 6, 7, 9], {"not_best": 1, "unfinished": 1}),
        # 0.6 is selected: a score equal to the threshold is not below it
        (
            {"score_threshold": 0.6},
            [1, 5, 6],
            {"below_threshold": 3, "duplicate": 1, "not_best": 2, "unfinished": 1},
        ),
        (
            {"drop_uniform": True},
            [1, 9],
            {"all_right": 2, "all_wrong": 2, "duplicate": 1, "not_best": 2, "unfinished": 1},
        ),
    ],
)
def test_selection_worked_by_hand(options, kept, dropped):
    assert pick_solutions(ROWS, SCORES, UNUSABLE, **options) == (kept, dropped)
    assert len(kept) + sum(dropped.values()) == len(ROWS)


def test_duplicates_below_the_threshold_are_counted_as_duplicates():
    rows = [row(0, "a"), row(0, "a"), row(0, "b")]
    assert pick_solutions(rows, [0.1, 0.1, 0.9], [None] * 3, score_threshold=0.5) == (
        [2],
        {"below_threshold": 1, "duplicate": 1},
    )


def test_equal_rewards_below_one_count_as_all_wrong():
    rows = [row(0, "a", 0.5), row(0, "b", 0.5)]
    assert pick_solutions(rows, [0.1, 0.2], [None] * 2, drop_uniform=True) == ([], {"all_wrong": 2})


def test_solution_scores_are_aggregated():
    assert solution_scores([[0.5, 0.25], [], [1.0]], "min") == [0.25, None, 1.0]
    assert solution_scores([[0.5, 0.25], [], [1.0]], "product") == [0.125, None, 1.0]
    assert solution_scores([[], []], "min") == [None, None]


def test_metrics_worked_by_hand():
    metrics = round_metrics(ROWS, SCORES, [1, 5], {"not_best": 8})
    assert metrics == pytest.approx(
        {
            "num_picked": 2,
            "mean_score": 4.9 / 9,
            "picked_score": (0.9 + 0.8) / 2,
            "unfinished_share": 0.1,
            "steps_per_answer": 13 / 10,  # three of the ten solutions have two steps
            "tokens_per_step": 40 / 13,
            "dropped_not_best": 8,
            "accuracy": 0.6,
            "picked_accuracy": 0.5,
            "agreement": 0.0,  # in question 0, the wrong solution has a higher score than all three right ones
        }
    )
    without = round_metrics([row(0, "a", num_tokens=6), row(0, "")], [None, None], [], {})
    assert without == {"num_picked": 0, "unfinished_share": 0.0, "steps_per_answer": 0.5, "tokens_per_step": 6.0}


def test_agreement_worked_by_hand():
    """Question 0 has pairs with right > wrong and a tie, question 1 one pair the other way round."""
    rows = [row(0, "a", 1.0), row(0, "b", 0.0), row(0, "c", 0.0), row(1, "d", 1.0), row(1, "e", 0.0), row(2, "f", 1.0)]
    assert agreement(rows, [0.5, 0.4, 0.5, 0.1, 0.9, 0.0]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert agreement(rows, [0.5, None, 0.5, None, 0.9, 0.0]) == 0.5
    assert agreement(rows, [None] * 6) is None  # no pair
    assert agreement([], []) is None


def test_questions_of_rounds_cover_all_questions_and_start_again():
    questions = [Question(str(index)) for index in range(5)]
    rounds = [questions_of_round(questions, index, 2, seed=7) for index in range(5)]
    flat = [question for block in rounds for question in block]
    assert sorted(flat[:5]) == sorted(questions) and flat[:5] != questions
    assert flat[5:] == flat[:5]
    assert questions_of_round(questions, 3, None, seed=7) == questions
    assert questions_of_round(questions, 0, 5, seed=8) != questions_of_round(questions, 0, 5, seed=7)
    with pytest.raises(ValueError, match="questions_per_round: got 6, expected at most 5"):
        questions_of_round(questions, 0, 6, seed=7)


def test_seeds_differ_by_purpose_round_and_run():
    seeds = {round_seed(seed, index, what) for seed in range(9) for index in range(9) for what in ("a", "b")}
    assert len(seeds) == 9 * 9 * 2


def test_a_folder_refuses_other_settings_and_names_the_difference(tmp_path):
    folder = RoundFolder(tmp_path, 0)
    folder.check_config({"eta": 1})  # the folder does not exist yet
    folder.add(config={"eta": 1, "pairs": (1, 2)})
    folder.add(kept=3)
    folder.check_config({"eta": 1, "pairs": (1, 2)})
    assert folder.manifest["kept"] == 3
    with pytest.raises(ValueError, match="round-0: got a round with other settings: eta was 1 and is now 2;"):
        folder.check_config({"eta": 2, "pairs": (1, 3)})
    folder.add(config={"sampling": {"top_p": 1.0, "seed": 0}})
    with pytest.raises(ValueError, match="other settings: sampling.top_p was 1.0 and is now 0.9. Choose"):
        folder.check_config({"sampling": {"top_p": 0.9, "seed": 0}})


def test_a_format_of_an_older_release_with_fewer_fields_is_accepted(tmp_path):
    folder = RoundFolder(tmp_path, 0)
    new = asdict(PRMFormat(splitter="newline"))
    added = ("steps_of", "expected_ids")
    folder.add(config={"reward_model_format": {name: new[name] for name in new if name not in added}})
    folder.check_config({"reward_model_format": new})
    folder.check_config({"reward_model_format": {**new, "expected_ids": {"separator": 1}}})  # does not change scores
    with pytest.raises(ValueError, match="other settings: reward_model_format.steps_of was"):
        folder.check_config({"reward_model_format": {**new, "steps_of": "answer"}})


def test_rows_are_written_atomically_and_read_again(tmp_path):
    rows = [{"text": "é\u2028\ud800", "ids": [1, 2]}, {"text": "", "ids": []}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    with pytest.raises(TypeError):
        write_rows(tmp_path / "rows.jsonl", [{"text": object()}])
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0]) == rows[0]
