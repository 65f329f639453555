"""Rows of labelled steps in the forms of other projects, read and worked by hand."""

import json
import logging

import pytest
from datasets import Dataset
from zoo import word_level

from erprm_trl import PRMFormat, load_labelled_steps
from erprm_trl.reward_model import to_stepwise
from erprm_trl.reward_model.trainer.preprocessing import encode_examples


QUESTION = "Ann has 3 apples and buys 4. How many?"


def completion(text, rating):
    return {"text": text, "rating": rating, "flagged": None}


def step(*completions, chosen=0, human=None):
    return {
        "completions": [completion(*candidate) for candidate in completions],
        "human_completion": human,
        "chosen_completion": chosen,
    }


def prm800k(*steps, finish_reason="solution", generation=None, **question):
    """A line of PRM800K with all its fields. `generation` is `None` in phase 1."""
    return {
        "labeler": "5b1e0f3c-0000-4000-8000-000000000000",
        "timestamp": "2022-07-17T16:56:51.323252",
        "generation": generation,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": QUESTION, "ground_truth_answer": "7", **question},
        "label": {"steps": list(steps), "total_time": 1200, "finish_reason": finish_reason},
    }


# Phase 1: alternatives at every step, and a step by the labeller where every completion is wrong.
PHASE_1 = prm800k(
    step(("She has 3.", 1), ("She has 4.", -1)),
    step(("So?", 0)),
    step(
        ("3 + 4 = 8", -1),
        ("3 + 4 = 9", -1),
        chosen=None,
        human={"text": "3 + 4 = 7", "rating": None, "source": "human", "flagged": False, "corrected_rating": None},
    ),
    step(("# Answer\n\n7", 1)),
)
# Phase 2: labelling ends with the first error, after which only alternatives are rated.
PHASE_2 = prm800k(
    step(("She has 3.", 0)),
    step(("3 + 4 = 8", -1), ("Add 4.", 0), ("3 + 4 = 7", 1), chosen=None),
    finish_reason="found_error",
    generation=9,
    ground_truth_solution="3+4=7",
    pre_generated_steps=["She has 3.", "3 + 4 = 8", "# Answer\n\n8"],
    pre_generated_answer="8",
    pre_generated_verifier_score=0.01,
)
BROKEN = prm800k(step(("?", -1), chosen=None), finish_reason="bad_problem")


def rows_of(*rows, **options):
    return list(to_stepwise(Dataset.from_list(list(rows)), **options))


def test_phase_1_of_prm800k_follows_the_chosen_completions():
    assert rows_of(PHASE_1) == [
        {
            "prompt": QUESTION,
            "completions": ["She has 3.", "So?", "3 + 4 = 7", "# Answer\n\n7"],
            "labels": [1.0, 1.0, 1.0, 1.0],
        }
    ]


def test_phase_2_of_prm800k_ends_with_the_first_error():
    assert rows_of(PHASE_2) == [{"prompt": QUESTION, "completions": ["She has 3.", "3 + 4 = 8"], "labels": [1.0, 0.0]}]


@pytest.mark.parametrize("neutral", [0.0, 0.5])
def test_neutral_ratings_get_the_label_that_is_asked_for(neutral):
    assert [row["labels"] for row in rows_of(PHASE_1, PHASE_2, neutral=neutral)] == [
        [1.0, neutral, 1.0, 1.0],
        [neutral, 0.0],
    ]
    with pytest.raises(ValueError, match=r"neutral: got 2, expected a label in \[0, 1\]"):
        rows_of(PHASE_1, neutral=2)


def test_alternatives_give_solutions_of_their_own():
    assert [(row["completions"], row["labels"]) for row in rows_of(PHASE_2, alternatives=True, neutral=0.5)] == [
        (["She has 3.", "Add 4."], [0.5, 0.5]),
        (["She has 3.", "3 + 4 = 7"], [0.5, 1.0]),
        (["She has 3.", "3 + 4 = 8"], [0.5, 0.0]),
    ]
    assert [row["completions"][-1] for row in rows_of(PHASE_1, alternatives=True)] == [
        "She has 4.",
        "3 + 4 = 8",
        "3 + 4 = 9",
        "# Answer\n\n7",
    ]


def test_a_broken_question_is_refused_or_left_out_and_counted(caplog):
    with pytest.raises(ValueError, match="Row 1, column 'label.finish_reason': 'bad_problem'. Drop the row"):
        rows_of(PHASE_1, BROKEN)
    with caplog.at_level(logging.WARNING, logger="erprm_trl"):
        assert len(rows_of(PHASE_1, BROKEN, PHASE_2, invalid_rows="drop")) == 2
    assert "1 are left out: {'a question that its labeller reported as broken': 1}" in caplog.text
    with pytest.raises(ValueError, match="all 1 rows are left out.*invalid_rows='error'"):
        rows_of(BROKEN, invalid_rows="drop")


def test_steps_that_nobody_rated_end_the_solution():
    row = prm800k(step(("a", 1)), step(("b", None), ("c", None), chosen=None), finish_reason="give_up")
    assert rows_of(row)[0]["completions"] == ["a"]
    empty = {"completions": None, "human_completion": None, "chosen_completion": None}
    assert rows_of(prm800k(step(("a", 1)), empty))[0]["completions"] == ["a"]
    for hole in (step(("b", None)), empty):
        with pytest.raises(
            ValueError, match="Row 0, column 'label.steps', step 1: no rating, and .*step 2 has one.*Rate"
        ):
            rows_of(prm800k(step(("a", 1)), hole, step(("c", 1))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (prm800k(step(("a", 2))), "step 0, rating: got 2 .*expected -1, 0, 1 or none"),
        (prm800k(step((None, 1))), "step 0: got {.*expected a text and its rating"),
        (prm800k(step(("a", 1), chosen=1)), "step 0, chosen_completion: got 1 .*expected an index of 1 completions"),
        (prm800k(step(("a", 1)), problem=None), "column 'question.problem': got None"),
    ],
)
def test_damaged_rows_of_prm800k_name_the_place(row, message):
    with pytest.raises(ValueError, match="Row 0, .*" + message):
        rows_of(row)


def test_rlhflows_conversations_are_read():
    mistral = {
        "conversations": [
            {"content": f"{QUESTION} Step 1: She has 3.", "role": "user"},
            {"content": "+", "role": "assistant"},
            {"content": "Step 2: The answer is: 8", "role": "user"},
            {"content": "-", "role": "assistant"},
        ]
    }
    expected = {
        "prompt": QUESTION,
        "completions": ["Step 1: She has 3.", "Step 2: The answer is: 8"],
        "labels": [1.0, 0.0],
    }
    assert rows_of(mistral) == [expected]
    deepseek = [
        {**turn, "content": turn["content"].replace("Step 1: ", "").replace("Step 2: ", "")}
        for turn in mistral["conversations"]
    ]
    # Nothing in the row says where the question ends.
    assert rows_of({"conversations": deepseek})[0]["prompt"] == ""
    named = rows_of({"conversations": deepseek, "question": QUESTION})[0]
    assert (named["prompt"], named["completions"]) == (QUESTION, ["She has 3.", "The answer is: 8"])


@pytest.mark.parametrize("first", ["She has 3.", "Step 1: She has 3."])
def test_a_question_that_the_conversation_does_not_repeat_is_kept(first):
    turns = [{"content": first, "role": "user"}, {"content": "+", "role": "assistant"}]
    expected = {"prompt": QUESTION, "completions": [first], "labels": [1.0]}
    assert rows_of({"conversations": turns, "question": QUESTION}) == [expected]
    assert rows_of({"conversations": turns}) == [{**expected, "prompt": ""}]


TURNS = [{"content": "a", "role": "user"}, {"content": "+", "role": "assistant"}]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (TURNS[:1], "message 1: got none, expected '[+]' or '-'"),
        (TURNS[1:], "message 0: got '[+]' .*by 'assistant', expected text by 'user'"),
        ([TURNS[0], {"content": "good", "role": "assistant"}], "message 1: got 'good' .*expected '[+]' or '-'"),
        ([{"content": None, "role": "user"}, TURNS[1]], "message 0: got None"),
    ],
)
def test_damaged_conversations_name_the_message(turns, message):
    with pytest.raises(ValueError, match=f"Row 0, column 'conversations', {message}.*one user message per step"):
        rows_of({"conversations": turns})


def processbench(label):
    return {
        "id": "gsm8k-0",
        "generator": "Qwen2-7B-Instruct",
        "problem": QUESTION,
        "steps": ["She has 3.", "3 + 4 = 8", "So 8."],
        "final_answer_correct": label == -1,
        "label": label,
    }


def test_processbench_is_read_up_to_the_first_error():
    wrong, right, at_once = rows_of(processbench(1), processbench(-1), processbench(0))
    assert (wrong["completions"], wrong["labels"]) == (["She has 3.", "3 + 4 = 8"], [1.0, 0.0])
    assert (right["completions"], right["labels"]) == (["She has 3.", "3 + 4 = 8", "So 8."], [1.0, 1.0, 1.0])
    assert at_once["labels"] == [0.0] and at_once["prompt"] == QUESTION
    for label in (3, -2):
        with pytest.raises(ValueError, match=f"Row 1, column 'label': got {label} for 3 steps. Count steps from 0"):
            rows_of(processbench(0), processbench(label))


def test_step_rewards_of_skyworks_code_are_read():
    row = {"problem": QUESTION, "response": "She has 3.\n\n3 + 4 = 7", "step_rewards": [0.5, 0.9, 0.75]}
    (read,) = rows_of(row)  # its code also scores the blank line
    assert (read["completions"], read["labels"]) == (["She has 3.", "3 + 4 = 7"], [0.5, 0.75])
    assert rows_of({**row, "step_rewards": [0.5, 0.75]}) == [read]


def test_all_forms_are_encoded_by_the_trainer_and_bad_rows_are_counted():
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗")
    cases = [
        ([PHASE_1, BROKEN, PHASE_2], [4, 2], {"a question that its labeller reported as broken": 1}),
        ([processbench(1), processbench(7), processbench(-1)], [2, 3], {"a first error outside the solution": 1}),
        (
            [{"conversations": TURNS * 2}, {"conversations": TURNS[:1]}],
            [2],
            {"a conversation that does not alternate between a step and its label": 1},
        ),
        (
            [{"problem": "q", "response": "a\nb", "step_rewards": values} for values in ([0.1, 0.2], [0.1])],
            [2],
            {"different numbers of labels and steps": 1},
        ),
    ]
    for rows, steps, dropped in cases:
        encoded, counts = encode_examples(Dataset.from_list(rows), word_level(), prm_format, invalid_rows="drop")
        assert [len(labels) for labels in encoded["step_labels"]] == steps
        assert counts["dropped_rows"] == dropped


def test_rows_without_a_question_do_not_count_as_one_question():
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗")
    rows = [{"conversations": [{**TURNS[0], "content": text}, TURNS[1]]} for text in ("7", "8")]
    encoded, _ = encode_examples(Dataset.from_list(rows), word_level(), prm_format)
    assert len(set(encoded["question_id"])) == 2


@pytest.mark.parametrize("rows", [[PHASE_2, PHASE_1], [processbench(1)], [{"conversations": TURNS}]])
def test_files_in_these_forms_are_loaded(tmp_path, rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_labelled_steps(path)
    assert list(to_stepwise(dataset)) == rows_of(*rows)
    stream = load_labelled_steps(path, streaming=True)
    assert list(to_stepwise(stream)) == rows_of(*rows)
