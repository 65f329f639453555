"""Dataset forms worked by hand, and each kind of bad row."""

import math
from itertools import accumulate

import pytest
from datasets import Dataset, Features, Json
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import word_level

from erprm_trl import PRMFormat
from erprm_trl.reward_model import encode_solution, to_stepwise
from erprm_trl.reward_model.trainer.preprocessing import encode_examples
from erprm_trl.reward_model.trainer.row_problems import check_encoded_labels
from erprm_trl.reward_model.trainer.streaming import encode_stream


FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}")
GOOD = {"prompt": "Tom dial 7 . right 1 . ?", "completions": ["7 + 1 = 8", "answer 8"], "labels": [0.9, 1.0]}


def encode(rows, **options):
    return encode_examples(Dataset.from_list(rows), word_level(), FORMAT, **options)


def test_math_shepherds_form_is_read():
    row = {
        "input": "Tom has 3. How many? Step 1: 3 + 1 = 4 ки\nStep 2: The answer is: 4 ки",
        "label": "Tom has 3. How many? Step 1: 3 + 1 = 4 +\nStep 2: The answer is: 4 -",
    }
    assert to_stepwise(Dataset.from_list([row]))[0] == {
        "prompt": "Tom has 3. How many?",
        "completions": ["Step 1: 3 + 1 = 4", "Step 2: The answer is: 4"],
        "labels": [1.0, 0.0],
    }
    with pytest.raises(ValueError, match="Row 0, column 'label': .*repeat 'input'"):
        to_stepwise(Dataset.from_list([{**row, "label": row["label"].replace("4 -", "5 -")}]))


def test_the_papers_form_is_read():
    rows = [
        {"text": "How many? Step 1: a ки Step 2: b ки", "value": [0.25, 1.0]},
        {"text": "no heading ки b ки and text after the last separator", "value": [0.5, 0.0]},
    ]
    first, second = to_stepwise(Dataset.from_list(rows))
    assert first == {"prompt": "How many?", "completions": ["Step 1: a", "Step 2: b"], "labels": [0.25, 1.0]}
    assert second == {"prompt": "", "completions": ["no heading", "b"], "labels": [0.5, 0.0]}


@pytest.mark.parametrize("column", ["value", "label"])
@pytest.mark.parametrize("labels", [["+", "-"], [1.0, 0.0]])
def test_openrlhfs_form_is_read(column, labels):
    row = {"input": "How many? Step 1: a ки\nStep 2: b ки", column: labels}
    read = to_stepwise(Dataset.from_list([row]))[0]
    assert read == {"prompt": "How many?", "completions": ["Step 1: a", "Step 2: b"], "labels": [1.0, 0.0]}
    with pytest.raises(ValueError, match=f"Row 0, column '{column}', step 0: got '\\?'"):
        to_stepwise(Dataset.from_list([{**row, column: ["?", "-"]}]))


def test_a_question_may_mention_its_first_step():
    rows = [{"text": "In Step 1: add. Why? Step 1: a ки\nStep 2: b ки", "value": [0.25, 1.0]}]
    assert to_stepwise(Dataset.from_list(rows))[0]["prompt"] == "In Step 1: add. Why?"


def test_rows_without_a_question_are_a_warning(caplog):
    rows = [{"text": "7 ки 8 ки", "value": [0.5, 0.0]}, {"text": "Tom Step 1: 7 ки 8 ки", "value": [0.5, 0.0]}]
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗")
    encode_examples(Dataset.from_list(rows), word_level(), prm_format, invalid_rows="drop")
    assert "1 of the first 2 rows have no question (no 'Step 1:'" in caplog.text
    assert "auc_within_questions" in caplog.text
    caplog.clear()
    encode_stream(Dataset.from_list(rows).to_iterable_dataset(), word_level(), prm_format)
    assert "the first row has no question (no 'Step 1:'" in caplog.text
    caplog.clear()
    encode([GOOD])
    assert not caplog.text


def test_the_stepwise_form_may_have_boolean_labels():
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


def test_a_solution_with_one_step_is_usable():
    encoded, _ = encode([{**GOOD, "completions": ["answer 8"], "labels": [1.0]}])
    assert len(encoded[0]["step_positions"]) == 1


BAD = [
    ({"labels": [0.5]}, "different numbers of labels and steps.*'labels' has 1 labels for 2 steps.*one label per"),
    ({"labels": [0.5, 0.5, 0.5]}, "'labels' has 3 labels for 2 steps"),
    ({"labels": [0.5, math.nan]}, "a label that is NaN or outside.*step 1: nan.*Rescale"),
    ({"labels": [0.5, None]}, "a label that is NaN or outside"),
    ({"labels": [1.2, 0.5]}, "column 'labels', step 0: 1.2"),
    ({"labels": [0.5, -0.1]}, "column 'labels', step 1: -0.1"),
    ({"completions": ["7 + 1 = 8", "  "]}, "an empty step.*'completions', step 1.*Join it"),
    ({"completions": [], "labels": []}, "no steps"),
    ({"completions": ["7 ки 8", "answer 8"]}, "the separator inside a step.*step 0: '7 ки 8'.*Choose a separator"),
    ({"prompt": "Tom " * 60}, "no labelled step within max_length.*Raise max_length, up to the model's context"),
    ({"completions": ["7 " * 60, "answer 8"]}, "no labelled step within max_length.*Raise max_length"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_row_is_an_error_that_names_it_or_counted(change, message, caplog):
    rows = [GOOD, {**GOOD, **change}, GOOD]
    with pytest.raises(
        ValueError, match=f"(?s)Row 1 of the train dataset has .*{message}|Row 1 of the train dataset has {message}"
    ):
        encode(rows, max_length=50)
    encoded, counts = encode(rows, max_length=50, invalid_rows="drop")
    assert len(encoded) == counts["kept"] == 2
    assert sum(counts["dropped_rows"].values()) == 1
    assert "1 of 3 rows are dropped" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, math.nan], "NaN or outside.*step 1: nan.*Rescale"),
        ([0.5, None], "NaN or outside.*step 1: None"),
        ([1.01, 0.5], "NaN or outside.*step 0: 1.01"),
        ([0.5, -0.01], "NaN or outside.*step 1: -0.01"),
        ([0.5], "different numbers of labels and steps.*1 labels for 2 positions"),
        ([0.5, 0.5, 0.5], "different numbers of labels and steps.*3 labels for 2 positions"),
    ],
)
def test_a_bad_label_of_an_encoded_dataset_is_an_error(labels, message):
    encoded, _ = encode([GOOD] * 1002)
    check_encoded_labels(encoded, "eval")
    rows = [*encoded.select(range(1001)), {**encoded[0], "step_labels": labels}]
    with pytest.raises(ValueError, match=f"Row 1001 of the eval dataset has .*{message}"):
        check_encoded_labels(Dataset.from_list(rows), "eval")


def test_dropped_steps_are_counted_and_logged(caplog):
    long = {**GOOD, "completions": ["7 + 1 = 8", "answer 8", "8 " * 60], "labels": [0.9, 1.0, 0.0]}
    encoded, counts = encode([GOOD, long], max_length=50)
    assert encoded[1]["step_labels"] == [0.9, 1.0]
    assert (counts["rows_with_dropped_steps"], counts["dropped_steps"]) == (1, 1)
    assert "1 labelled steps at the end of 1 solutions do not fit max_length=50" in caplog.text


def test_identical_labels_are_a_warning(caplog):
    encode([{**GOOD, "labels": [0.0, 0.0]}] * 2)
    assert "every label is 0.0" in caplog.text
    caplog.clear()
    encode([GOOD])
    assert "every label" not in caplog.text


def test_last_step_only_keeps_the_label_of_the_last_step():
    encoded, counts = encode([GOOD], last_step_only=True)
    assert encoded[0]["step_labels"] == [1.0]
    assert len(encoded[0]["input_ids"]) == encoded[0]["step_positions"][0] + 1
    assert counts["steps"] == 1
    long = {**GOOD, "completions": ["7 + 1 = 8", "8 " * 60]}
    with pytest.raises(
        ValueError, match="no labelled step within max_length"
    ):  # the last step, which has the label, was dropped
        encode([long], max_length=50, last_step_only=True)


@pytest.mark.parametrize(
    ("encode_them", "message"),
    [
        (
            lambda: encode_examples(
                Dataset.from_dict({"prompt": [], "completions": [], "labels": []}), word_level(), FORMAT
            ),
            "train dataset is empty",
        ),
        (lambda: to_stepwise(Dataset.from_list([{"a": 1}])), r"\['a'\], expected .*'labels'"),
        (lambda: encode([{**GOOD, "labels": [2.0, 2.0]}], invalid_rows="drop"), "no usable row"),
        (lambda: encode([{"completions": ["a"], "labels": [1.0]}]), "'prompt' among them"),
        (lambda: encode([GOOD], invalid_rows="skip"), "invalid_rows: got 'skip'"),
        (lambda: encode([GOOD], label_weighting="std"), "label_weighting: got 'std'"),
    ],
)
def test_empty_datasets_unknown_columns_and_arguments_are_errors(encode_them, message):
    with pytest.raises(ValueError, match=message):
        encode_them()


OF_ANOTHER_TYPE = [
    ({"prompt": 7}, r"column 'prompt': got 7 \(int\), expected a text"),
    ({"prompt": None}, "column 'prompt': got None"),
    ({"prompt": [{"role": "user", "content": "7 ?"}]}, r"column 'prompt': got \[\{"),
    ({"completions": "ab"}, r"column 'completions': got 'ab' \(str\), expected a list of texts"),  # not letters
    ({"completions": {"a": "7", "b": "8"}}, "column 'completions': got {.*expected a list of texts"),  # not keys
    ({"completions": ["7 + 1 = 8", ["answer 8"]]}, r"column 'completions', step 1: got \['answer 8'\] \(list\) in"),
    ({"completions": [1, 2]}, "column 'completions', step 0: got 1"),
    ({"labels": 0.5}, r"column 'labels': got 0.5 \(float\), expected a list of numbers"),
    ({"labels": ["0.5", "1"]}, r"column 'labels', step 0: got '0.5' \(str\) in a list of numbers"),
    ({"labels": [0.5, [1.0]]}, r"column 'labels', step 1: got \[1.0\] \(list\) in a list of numbers"),
    ({"label_std": "few"}, "column 'label_std': got 'few'"),
]


@pytest.mark.parametrize(("change", "message"), OF_ANOTHER_TYPE, ids=lambda case: str(case)[:40])
def test_a_value_of_the_wrong_type_is_an_error_that_names_it_or_counted(change, message, caplog):
    good = {**GOOD, "label_std": [0.1, 0.0]}
    data = Dataset.from_list([good, {**good, **change}], features=Features({column: Json() for column in good}))
    options = {"label_weighting": "precision"}
    with pytest.raises(ValueError, match=f"Row 1 of the train dataset has a value of the wrong type .*{message}.*Con"):
        encode_examples(data, word_level(), FORMAT, **options)
    encoded, counts = encode_examples(data, word_level(), FORMAT, invalid_rows="drop", **options)
    assert len(encoded) == 1 and counts["dropped_rows"] == {"a value of the wrong type": 1}
    assert "1 of 2 rows are dropped" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "7 ки", "label": "7 ?"}, "column 'label': does not repeat"),
        ({"input": None, "label": "7 +"}, "column 'input': got None"),
        ({"input": "7 ки", "label": None}, "column 'label': got None"),
        ({"text": "7 ки", "value": "+"}, r"column 'value': got '\+' \(str\), expected a list of numbers; \.csv and"),
        ({"text": ["7 ки"], "value": [1.0]}, "column 'text': got "),
        ({"text": "7 ки 8 ки", "value": [1.0]}, "column 'value' has 1 labels for 2 steps in column 'text'"),
        ({"text": "7 ки", "value": [None]}, "column 'value', step 0: nan"),
    ],
)
def test_text_forms_name_their_own_columns(row, message, caplog):
    good = {"input": "7 ки", "label": "7 +"} if "input" in row else {"text": "7 ки", "value": [0.5]}
    data = Dataset.from_list([good, row], features=Features({column: Json() for column in row}))
    with pytest.raises(ValueError, match=rf"Row 1 .*\({message}"):
        encode_examples(data, word_level(), FORMAT)
    encoded, counts = encode_examples(data, word_level(), FORMAT, invalid_rows="drop")
    assert len(encoded) == 1 and sum(counts["dropped_rows"].values()) == 1 and "are dropped" in caplog.text


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_a_formatted_dataset_is_read_like_any_other(kind):
    rows = [GOOD, {**GOOD, "completions": ["answer 8"], "labels": [0.0]}]
    data = Dataset.from_list(rows).with_format(kind)
    plain, _ = encode(rows)
    assert encode_examples(data, word_level(), FORMAT)[0][:] == plain[:]
    valued = Dataset.from_list([{"text": "7 ки 8 ки", "value": [0.5, 1.0]}]).with_format(kind)
    assert to_stepwise(valued)[0] == {"prompt": "", "completions": ["7", "8"], "labels": [0.5, 1.0]}


# Not "7", because the feature Json parses a text that is valid JSON.
OTHER_TEXTS = st.text(st.characters(codec="utf-8"), max_size=4).map("x".__add__)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-2, 2) | OTHER_TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from("ab"), values, max_size=2),
    max_leaves=5,
)
STEP_TEXTS = st.sampled_from(["7 + 1 = 8", "answer 8", "8 " * 20, "", " \n", "7 ки 8", "ки", "\u0301\u202e😀\x00"])
SOME_LABELS = st.floats(0, 1) | st.sampled_from([True, 0, 1, 1.0000001, -1e-9, None])


@st.composite
def drawn_rows(draw):
    """Rows of steps and labels. Some are right, and others have values of a wrong type."""
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        steps = draw(st.lists(STEP_TEXTS, max_size=3))
        labels = draw(st.lists(SOME_LABELS, min_size=len(steps), max_size=len(steps)))
        row = {"prompt": draw(STEP_TEXTS), "completions": steps, "labels": labels}
        for column in draw(st.sets(st.sampled_from(list(row)), max_size=1)):
            values = row[column]
            if isinstance(values, list) and values and draw(st.booleans()):
                values[draw(st.integers(0, len(values) - 1))] = draw(JSON_VALUES)
            else:
                row[column] = draw(JSON_VALUES)
        rows.append(row)
    return rows


def is_usable(row, max_length):
    """An independent implementation of the conditions for a usable row."""
    prompt, steps, labels = row["prompt"], row["completions"], row["labels"]
    return (
        isinstance(prompt, str)
        and isinstance(steps, list)
        and isinstance(labels, list)
        and len(steps) == len(labels) > 0
        and all(isinstance(step, str) and step.strip() for step in steps)
        and all(isinstance(label, (int, float)) and 0 <= label <= 1 for label in labels)
        and (kept := how_many_fit(prompt, steps, max_length)) > 0
        and not any("ки" in step for step in steps[:kept])
    )


def how_many_fit(prompt, steps, max_length):
    """Number of steps that fit, each with its separator."""
    ends = accumulate(len(f"{step} ки".split()) for step in steps)
    return sum(len(f"check {prompt}".split()) + end <= max_length for end in ends)


@settings(max_examples=settings().max_examples // 10, deadline=None)
@given(drawn_rows())
def test_any_dataset_is_read_or_its_bad_rows_are_errors_or_counted(rows):
    data = Dataset.from_list(rows, features=Features({column: Json() for column in rows[0]}))
    usable = [row for row in rows if is_usable(row, 24)]
    bad = [index for index, row in enumerate(rows) if row not in usable]
    if bad:
        with pytest.raises(ValueError, match=rf"Row {bad[0]} of the train dataset has .*column '\w+'|max_length"):
            encode_examples(data, word_level(), FORMAT, max_length=24)
    if not usable:
        with pytest.raises(ValueError, match="no usable row"):
            encode_examples(data, word_level(), FORMAT, max_length=24, invalid_rows="drop")
        return
    encoded, counts = encode_examples(data, word_level(), FORMAT, max_length=24, invalid_rows="drop")
    assert counts["kept"] == len(encoded) == len(usable) and sum(counts["dropped_rows"].values()) == len(bad)
    for example, row in zip(encoded, usable, strict=True):
        # The feature Json keeps ten digits.
        assert example["step_labels"] == pytest.approx(
            [float(label) for label in row["labels"]][: len(example["step_labels"])], abs=1e-9
        )
        assert len(example["step_labels"]) == len(example["step_positions"]) > 0 and example["length"] <= 24
        scored = encode_solution(word_level(), FORMAT, row["prompt"], row["completions"], max_length=24)
        assert (example["input_ids"], example["step_positions"]) == (scored.input_ids, scored.step_positions)
    assert counts["steps"] + counts["dropped_steps"] == sum(len(row["labels"]) for row in usable)


@pytest.mark.parametrize(("splitter", "warns"), [("newline", False), ("whole_lines", True), ("step", True)])
def test_steps_that_their_text_would_not_have_are_a_warning(caplog, splitter, warns):
    rows = [{"prompt": "q", "completions": ["7 + 1 = 8", "8 * 2 = 16"], "labels": [True, False]}] * 2
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗", splitter=splitter)
    encode_examples(Dataset.from_list(rows), word_level(), prm_format, invalid_rows="drop")
    message = f"train dataset: 2 of the first 2 rows have other steps than splitter='{splitter}'"
    assert (message in caplog.text) is warns


def test_a_stream_without_a_usable_row_is_an_error():
    prm_format = PRMFormat(separator="ки", good_token="✓", bad_token="✗")
    rows = Dataset.from_list([{"prompt": "q", "completions": [], "labels": []}] * 3).to_iterable_dataset()
    with pytest.raises(ValueError, match="The train dataset has no usable row.*Set invalid_rows='error'"):
        encode_stream(rows, word_level(), prm_format, invalid_rows="drop")
