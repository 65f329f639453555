"""Labelled steps in the forms of other projects, written and read again."""

import pytest
from datasets import Dataset

from erprm_trl.reward_model import from_stepwise, to_stepwise


WRONG = {"prompt": "What is 1 + 2?", "completions": ["Add.", "It is 4.", "So 4."], "labels": [0.75, 0.25, 0.5]}
RIGHT = {"prompt": "What is 2 + 2?", "completions": ["It is 4."], "labels": [1.0]}
ROWS = Dataset.from_list([WRONG, RIGHT])
NUMBERED = ["Step 1: Add.", "Step 2: It is 4.", "Step 3: So 4."]


def test_math_shepherds_texts():
    row = from_stepwise(ROWS, "math_shepherd")[0]
    assert row == {
        "input": "What is 1 + 2? Step 1: Add. ки\nStep 2: It is 4. ки\nStep 3: So 4. ки",
        "label": "What is 1 + 2? Step 1: Add. +\nStep 2: It is 4. -\nStep 3: So 4. +",
    }


def test_numbered_steps_are_not_numbered_again():
    rows = Dataset.from_list([{**WRONG, "completions": NUMBERED}])
    assert from_stepwise(rows, "er_prm")[0] == {
        "text": "What is 1 + 2? Step 1: Add. ки\nStep 2: It is 4. ки\nStep 3: So 4. ки",
        "value": [0.75, 0.25, 0.5],
    }


def test_rlhflows_conversations():
    row = from_stepwise(ROWS, "rlhflow", threshold=0.6)[0]
    assert row["question"] == "What is 1 + 2?"
    assert [(turn["role"], turn["content"]) for turn in row["conversations"]] == [
        ("user", "What is 1 + 2? Add."),
        ("assistant", "+"),
        ("user", "It is 4."),
        ("assistant", "-"),
        ("user", "So 4."),
        ("assistant", "-"),
    ]


def test_processbenchs_first_errors():
    rows = list(from_stepwise(ROWS, "processbench"))
    assert rows[0] == {"id": "row-0", "problem": "What is 1 + 2?", "steps": WRONG["completions"], "label": 1}
    assert rows[1]["label"] == -1


def test_prm800ks_ratings_end_with_the_first_error():
    wrong, right = from_stepwise(ROWS, "prm800k")
    assert wrong["question"] == {"problem": "What is 1 + 2?"}
    assert wrong["label"]["finish_reason"] == "found_error" and right["label"]["finish_reason"] == "solution"
    assert wrong["label"]["steps"] == [
        {
            "completions": [{"text": "Add.", "rating": 1, "flagged": None}],
            "human_completion": None,
            "chosen_completion": 0,
        },
        {
            "completions": [{"text": "It is 4.", "rating": -1, "flagged": None}],
            "human_completion": None,
            "chosen_completion": None,
        },
    ]


def test_skyworks_lines():
    row = from_stepwise(ROWS, "skywork")[0]
    assert row == {"problem": "What is 1 + 2?", "response": "Add.\nIt is 4.\nSo 4.", "step_rewards": [0.75, 0.25, 0.5]}


@pytest.mark.parametrize(
    ("form", "completions", "labels"),
    [
        ("math_shepherd", NUMBERED, [1.0, 0.0, 1.0]),
        ("er_prm", NUMBERED, [0.75, 0.25, 0.5]),
        ("rlhflow", WRONG["completions"], [1.0, 0.0, 1.0]),
        ("processbench", WRONG["completions"][:2], [1.0, 0.0]),
        ("prm800k", WRONG["completions"][:2], [1.0, 0.0]),
        ("skywork", WRONG["completions"], [0.75, 0.25, 0.5]),
    ],
)
def test_what_is_written_is_read_again(form, completions, labels, tmp_path):
    path = tmp_path / "rows.jsonl"
    from_stepwise(ROWS, form).to_json(path)
    read = to_stepwise(Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache")))[0]
    assert read == {"prompt": "What is 1 + 2?", "completions": completions, "labels": labels}


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        ([WRONG], "trl", "form: got 'trl', expected one of 'math_shepherd'"),
        ([{"text": "a"}], "rlhflow", r"got columns \['text'\], expected completions, labels, prompt too.*to_stepwise"),
        ([RIGHT, {**WRONG, "labels": [1.0]}], "rlhflow", "Row 1 has different numbers of labels and steps"),
        ([{**RIGHT, "labels": [1.5]}], "er_prm", "Row 0 has a label that is NaN or outside"),
        ([{**RIGHT, "completions": ["a ки b"]}], "math_shepherd", "column 'completions', step 0: got 'a ки b'"),
        ([{**RIGHT, "completions": ["a\nb"]}], "skywork", "expected no '\\\\n', which separates Skywork's steps"),
    ],
)
def test_rows_that_do_not_fit_a_form_are_refused(rows, form, message):
    with pytest.raises(ValueError, match=message):
        from_stepwise(Dataset.from_list(rows), form)
