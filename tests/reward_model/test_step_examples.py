"""Dataset forms by hand, and each kind of bad row, tried one by one."""

import math

import pytest
from datasets import Dataset
from zoo import word_level

from erprm_trl import PRMFormat
from erprm_trl.reward_model import to_stepwise
from erprm_trl.reward_model.step_examples import encode_examples


FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}")
GOOD = {"prompt": "Tom dial 7 . right 1 . ?", "completions": ["7 + 1 = 8", "answer 8"], "labels": [0.9, 1.0]}


def encode(rows, **options):
    return encode_examples(Dataset.from_list(rows), word_level(), FORMAT, **options)


def test_math_shepherds_form():
    row = {
        "input": "Tom has 3. How many? Step 1: 3 + 1 = 4 ки\nStep 2: The answer is: 4 ки",
        "label": "Tom has 3. How many? Step 1: 3 + 1 = 4 +\nStep 2: The answer is: 4 -",
    }
    assert to_stepwise(Dataset.from_list([row]))[0] == {
        "prompt": "Tom has 3. How many?",
        "completions": ["Step 1: 3 + 1 = 4", "Step 2: The answer is: 4"],
        "labels": [1.0, 0.0],
    }
    with pytest.raises(ValueError, match="Row 0, column 'label': does not repeat 'input'"):
        to_stepwise(Dataset.from_list([{**row, "label": row["label"].replace("4 -", "5 -")}]))


def test_the_papers_form():
    rows = [
        {"text": "How many? Step 1: a ки Step 2: b ки", "value": [0.25, 1.0]},
        {"text": "no heading ки b ки and text after the last separator", "value": [0.5, 0.0]},
    ]
    first, second = to_stepwise(Dataset.from_list(rows))
    assert first == {"prompt": "How many?", "completions": ["Step 1: a", "Step 2: b"], "labels": [0.25, 1.0]}
    assert second == {"prompt": "", "completions": ["no heading", "b"], "labels": [0.5, 0.0]}


def test_stepwise_form_with_boolean_labels():
    encoded, counts = encode([{**GOOD, "labels": [True, False]}])
    assert encoded[0]["step_labels"] == [1.0, 0.0]
    assert counts == {
        "rows": 1,
        "kept": 1,
        "steps": 2,
        "dropped_rows": {},
        "rows_with_dropped_steps": 0,
        "dropped_steps": 0,
    }


def test_a_solution_with_one_step_is_fine():
    encoded, _ = encode([{**GOOD, "completions": ["answer 8"], "labels": [1.0]}])
    assert len(encoded[0]["step_positions"]) == 1


BAD = [
    ({"labels": [0.5]}, "labels and steps that differ in number.*'labels' has 1 for 2 steps.*one label a step"),
    ({"labels": [0.5, 0.5, 0.5]}, "'labels' has 3 for 2 steps"),
    ({"labels": [0.5, math.nan]}, "a label that is NaN or outside.*step 1: nan.*rescale"),
    ({"labels": [0.5, None]}, "a label that is NaN or outside"),
    ({"labels": [1.2, 0.5]}, "column 'labels', step 0: 1.2"),
    ({"labels": [0.5, -0.1]}, "column 'labels', step 1: -0.1"),
    ({"completions": ["7 + 1 = 8", "  "]}, "an empty step.*'completions', step 1.*Join it"),
    ({"completions": [], "labels": []}, "no steps"),
    ({"completions": ["7 ки 8", "answer 8"]}, "separator's token inside a step.*step 0: '7 ки 8'.*Choose a separator"),
    ({"completions": ["7 " * 60, "answer 8"]}, "no labelled step within max_length.*Raise max_length"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_row_is_an_error_that_names_it_or_is_counted(change, message, caplog):
    rows = [GOOD, {**GOOD, **change}, GOOD]
    with pytest.raises(
        ValueError, match=f"(?s)Row 1 of the train dataset has .*{message}|Row 1 of the train dataset has {message}"
    ):
        encode(rows, max_length=50)
    encoded, counts = encode(rows, max_length=50, invalid_rows="drop")
    assert len(encoded) == counts["kept"] == 2
    assert sum(counts["dropped_rows"].values()) == 1
    assert "1 of 3 rows left out" in caplog.text


def test_truncated_labels_are_counted_and_logged(caplog):
    long = {**GOOD, "completions": ["7 + 1 = 8", "answer 8", "8 " * 60], "labels": [0.9, 1.0, 0.0]}
    encoded, counts = encode([GOOD, long], max_length=50)
    assert encoded[1]["step_labels"] == [0.9, 1.0]
    assert (counts["rows_with_dropped_steps"], counts["dropped_steps"]) == (1, 1)
    assert "1 labelled steps at the end of 1 solutions do not fit max_length=50" in caplog.text


def test_labels_that_are_all_the_same_are_said(caplog):
    encode([{**GOOD, "labels": [0.0, 0.0]}] * 2)
    assert "every label is 0.0" in caplog.text
    caplog.clear()
    encode([GOOD])
    assert "every label" not in caplog.text


def test_last_step_only():
    encoded, counts = encode([GOOD], last_step_only=True)
    assert encoded[0]["step_labels"] == [1.0]
    assert len(encoded[0]["input_ids"]) == encoded[0]["step_positions"][0] + 1
    assert counts["steps"] == 1
    long = {**GOOD, "completions": ["7 + 1 = 8", "8 " * 60]}
    with pytest.raises(
        ValueError, match="no labelled step within max_length"
    ):  # the outcome's label would be on another step
        encode([long], max_length=50, last_step_only=True)


def test_empty_datasets_and_unknown_columns():
    with pytest.raises(ValueError, match="train dataset is empty"):
        encode_examples(Dataset.from_dict({"prompt": [], "completions": [], "labels": []}), word_level(), FORMAT)
    with pytest.raises(
        ValueError, match=r"got columns \['a'\], expected one of these pairs: 'completions' and 'labels'"
    ):
        to_stepwise(Dataset.from_list([{"a": 1}]))
    with pytest.raises(ValueError, match="no usable row"):
        encode([{**GOOD, "labels": [2.0, 2.0]}], invalid_rows="drop")
    with pytest.raises(ValueError, match="'prompt' among them"):
        encode([{"completions": ["a"], "labels": [1.0]}])
