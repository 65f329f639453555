"""Every form of a dataset that the trainer accepts gives the same examples, and errors contain a fix that works."""

import math
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, List, Value
from fake_sampler import FakeSampler
from zoo import byte_level_bpe, save_tiny, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, RolloutDataset, collect_rollouts, load_questions
from erprm_trl.reward_model import LabelledSource, to_stepwise
from erprm_trl.reward_model.trainer.data_setup import labels_eta, prepare_dataset
from erprm_trl.rollouts import RolloutRow


TOKENIZER = word_level()
FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}")
ROWS = [
    {"prompt": "Tom 7 ?", "completions": ["7 + 1 = 8", "answer 8"], "labels": [0.75, 1.0]},
    {"prompt": "Ann 3 ?", "completions": ["3 + 1 = 4", "4 + 1 = 5", "answer 5"], "labels": [1.0, 0.5, 0.0]},
]
DATA = Dataset.from_list(ROWS)


def prepared(dataset, is_training=True, max_length=None, **settings):
    args = ERPRMConfig("unused", use_cpu=True, bf16=False, **settings)
    name = "train" if is_training else "eval"
    return prepare_dataset(dataset, TOKENIZER, FORMAT, args, name=name, max_length=max_length, is_training=is_training)


def test_rows_of_rollouts_are_no_dataset(tmp_path):
    row = RolloutRow(chunk=0, question_index=0, solution_index=0, question="q", answer="1", steps=["a"], unusable=None)
    with pytest.raises(
        TypeError, match=r"is a list, .*Pass rollouts, or some of their labels: rollouts.labels\(eta\)"
    ):
        prepared([row])


def examples(*arguments, **options):
    columns = ("input_ids", "step_positions", "step_labels")
    return [{column: row[column] for column in columns} for row in prepared(*arguments, **options).examples]


def token_ids(rows):
    """Rows in the form of TRL's PRMTrainer: labels at separators, -100 elsewhere, and ids after the last label."""
    separator = TOKENIZER.convert_tokens_to_ids("ки")
    for row in rows:
        ids = TOKENIZER.encode(f"check {row['prompt']} " + "".join(f"{step} ки " for step in row["completions"]))
        labels = iter(row["labels"])
        marked = [next(labels) if token == separator else -100.0 for token in ids]
        yield {"input_ids": [*ids, 5, 6], "labels": [*marked, -100.0, -100.0], "attention_mask": [1] * (len(ids) + 2)}


@pytest.mark.parametrize("splitter", ["newline", "whole_lines"])
def test_another_splitter_in_the_format_than_in_the_rollouts_is_a_warning(tmp_path, caplog, splitter):
    (tmp_path / "q.jsonl").write_text('{"question": "Tom 7 ?", "answer": "1"}\n')
    settings = {"num_continuations": 1, "grading": "exact", "answer_pattern": r"answer (\d+)", "show_progress": False}
    questions = load_questions(tmp_path / "q.jsonl")
    rollouts = collect_rollouts(questions, FakeSampler(), tmp_path / "rollouts", splitter=splitter, **settings)
    prepared(rollouts)
    message = "rollouts with splitter='whole_lines', but the reward model's format has 'newline'"
    assert (message in caplog.text) is (splitter == "whole_lines")
    assert "steps_of" not in caplog.text


def test_the_format_takes_the_splitter_of_the_rollouts(tmp_path):
    """The model will score texts that are split like the training texts, unless an argument or the model's own format
    sets another splitter."""
    (tmp_path / "q.jsonl").write_text('{"question": "Tom 7 ?", "answer": "1"}\n')
    settings = {"num_continuations": 1, "grading": "exact", "answer_pattern": r"answer (\d+)", "show_progress": False}
    collect_rollouts(
        load_questions(tmp_path / "q.jsonl"), FakeSampler(), tmp_path / "rollouts", splitter="whole_lines", **settings
    )
    save_tiny(tmp_path / "model", byte_level_bpe())
    save_tiny(tmp_path / "reward_model", byte_level_bpe())
    PRMFormat(splitter="blank_line").save(tmp_path / "reward_model")

    def splitter_of(model, **arguments):
        tokens = {"separator": "<|step|>", "add_missing_tokens": True}
        args = ERPRMConfig(str(tmp_path / "out"), bf16=False, report_to="none", use_cpu=True, **tokens, **arguments)
        return ERPRMTrainer(tmp_path / model, args, train_dataset=tmp_path / "rollouts").prm_format.splitter

    assert splitter_of("model") == "whole_lines"
    assert splitter_of("model", splitter="newline") == "newline"
    assert splitter_of("reward_model") == "blank_line"


def test_the_format_records_the_eta_of_the_labels(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Tom 7 ?", "answer": "1"}\n')
    settings = {"num_continuations": 1, "answer_pattern": r"answer (\d+)", "show_progress": False}
    questions = load_questions(tmp_path / "q.jsonl")
    exact = collect_rollouts(questions, FakeSampler(), tmp_path / "exact", grading="exact", **settings)
    shutil.copytree(tmp_path / "exact", tmp_path / "own")
    manifest = (tmp_path / "own" / "manifest.json").read_text()
    (tmp_path / "own" / "manifest.json").write_text(manifest.replace('"exact"', '"package.module:function"'))
    own = RolloutDataset(tmp_path / "own")
    assert own.settings.grading == "package.module:function"

    def recorded(dataset, **arguments):
        return labels_eta(dataset, ERPRMConfig("unused", use_cpu=True, bf16=False, **arguments))

    assert recorded(exact) == 2.0 and recorded(exact, eta=math.inf) == math.inf
    assert recorded(exact, train_on_last_step_only=True) == 0.0  # the label is the solution's own reward at every eta
    assert recorded(exact, min_question_rate=0.1) == 2.0
    for options in ({"relative_labels": True}, {"error_tolerance": 0}, {"label_correct_solutions": "ones"}):
        assert recorded(exact, **options) is None  # these labels are not the values of their prefixes
    assert recorded([exact, LabelledSource(exact, eta=2.0)]) == 2.0
    assert recorded([exact, LabelledSource(exact, eta=0.0)]) is None and recorded([exact, DATA]) is None
    assert recorded(own) is None and recorded(own, recorded_eta=2.0) == 2.0
    assert recorded(DATA) is None and recorded(DATA, recorded_eta=0.0) == 0.0


def test_the_eta_of_a_reward_model_is_not_the_eta_of_its_next_training(tmp_path):
    save_tiny(tmp_path / "model", TOKENIZER)
    FORMAT.with_eta(0.0).save(tmp_path / "model")
    for options, eta in (({}, None), ({"recorded_eta": 3.0}, 3.0)):
        args = ERPRMConfig(str(tmp_path / "out"), bf16=False, report_to="none", use_cpu=True, **options)
        trainer = ERPRMTrainer(str(tmp_path / "model"), args, train_dataset=DATA)
        assert trainer.prm_format == FORMAT.with_eta(eta)
    trainer.save_model()
    assert PRMFormat.load(tmp_path / "out").eta == 3.0


def test_padding_of_token_ids_is_removed():
    """Rows in TRL's form may be padded, with an `attention_mask`."""
    padded = [
        {
            "input_ids": [0, 0, *row["input_ids"]],
            "labels": [-100.0, -100.0, *row["labels"]],
            "attention_mask": [0, 0, *row["attention_mask"]],
        }
        for row in token_ids(ROWS)
    ]
    assert examples(Dataset.from_list(padded)) == examples(DATA)
    padded[1]["attention_mask"].pop()
    with pytest.raises(ValueError, match="Row 1 .*'attention_mask' has .* 'input_ids'"):
        prepared(Dataset.from_list(padded))


def test_token_ids_give_the_same_examples_as_their_texts():
    data = Dataset.from_list(list(token_ids(ROWS)))
    assert examples(data) == examples(DATA)
    result = prepared(data)
    assert result.counts["steps"] == 5 and result.examples["prompt_length"][:] == [0, 0]
    assert len(set(result.examples["question_id"][:])) == 2
    # Token ids are cut like texts: steps that do not fit are dropped and counted.
    longest = prepared(DATA).examples["step_positions"][1][1] + 1
    for dataset in (data, DATA):
        cut = prepared(dataset, max_length=longest)
        assert [len(labels) for labels in cut.examples["step_labels"]] == [2, 2]
        assert (cut.counts["dropped_steps"], cut.counts["rows_with_dropped_steps"]) == (1, 1)
    assert examples(data, train_on_last_step_only=True) == examples(DATA, train_on_last_step_only=True)
    # Labels as in TRL's trainer: booleans or integers.
    whole = Dataset.from_list([{"input_ids": [7, 8, 9, 9], "labels": [-100, 1, -100, 0]}])
    assert examples(whole) == [{"input_ids": [7, 8, 9, 9], "step_positions": [1, 3], "step_labels": [1.0, 0.0]}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [7, 8], "labels": [1]}, "column 'labels' has 1 values for 2 token ids .*one label per token"),
        ({"input_ids": [7, 8], "labels": [-100, -100]}, "no steps .*column 'input_ids'"),
        ({"input_ids": [7, 8], "labels": [-100, 2]}, r"outside \[0, 1\] .*column 'labels', step 0: 2.0"),
        ({"input_ids": [7, -8], "labels": [-100, 1]}, "column 'input_ids', step 1: got -8"),
        ({"input_ids": [7, 999], "labels": [-100, 1]}, "token ids beyond the tokenizer's vocabulary .*999"),
    ],
)
def test_unusable_token_ids_are_errors_or_counted(row, message):
    good = {"input_ids": [7, 8], "labels": [-100, 0]}
    with pytest.raises(ValueError, match=f"Row 1 of the train dataset has .*{message}"):
        prepared(Dataset.from_list([good, row]))
    left = prepared(Dataset.from_list([good, row]), invalid_rows="drop")
    assert len(left.examples) == 1 and sum(left.counts["dropped_rows"].values()) == 1


def test_streams_give_the_same_examples_as_datasets(caplog):
    token_rows = list(token_ids(ROWS))
    encoded = prepared(DATA).examples
    for rows in (DATA, Dataset.from_list(token_rows), encoded):
        stream = rows.to_iterable_dataset()
        for same in (stream, stream.map(lambda row: row), stream.map(lambda row: row).with_format("torch")):
            assert examples(same) == examples(rows)
            assert examples(same, is_training=False) == examples(rows, is_training=False)
    assert examples(stream, train_on_last_step_only=True) != []
    longest = prepared(DATA).examples["step_positions"][1][1] + 1
    short = prepared(DATA.to_iterable_dataset(), max_length=longest)
    assert [len(row["step_labels"]) for row in short.examples] == [2, 2]
    assert "1 labelled steps at the end of 1 of 2 solutions, counted from row 0, do not fit" in caplog.text


def test_unusable_rows_of_a_stream_are_errors_or_counted(caplog):
    bad = {**ROWS[0], "labels": [7.0, 1.0]}
    stream = Dataset.from_list([*ROWS, bad]).to_iterable_dataset().map(lambda row: row)
    with pytest.raises(ValueError, match=r"Row 2 of the train dataset has a label .*outside .*invalid_rows=.drop."):
        list(prepared(stream).examples)
    assert len(list(prepared(stream, invalid_rows="drop").examples)) == 2
    assert "1 of 3 rows, counted from row 0, are dropped: {'a label that is NaN or outside [0, 1]': 1}" in caplog.text
    late = Dataset.from_list([*[ROWS[0]] * 130, bad]).to_iterable_dataset()
    with pytest.raises(ValueError, match="Row 130 of the train dataset"):
        list(prepared(late).examples)
    # An evaluation stream is read at once, so that all processes know its length.
    evaluated = prepared(stream, is_training=False, invalid_rows="drop")
    assert isinstance(evaluated.examples, Dataset) and (evaluated.counts["kept"], evaluated.counts["rows"]) == (2, 3)
    encoded = [dict(row) for row in prepared(DATA).examples]
    stream = Dataset.from_list([*encoded, {**encoded[0], "step_labels": [7.0, 1.0]}]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"Row 2 of the train dataset has a label .*outside"):
        list(prepared(stream).examples)


def test_unsupported_uses_of_a_stream_are_errors_with_a_working_fix():
    rows = [{**row, "label_std": [0.1] * len(row["labels"])} for row in ROWS]
    stream = Dataset.from_list(rows).to_iterable_dataset().map(lambda row: row)
    with pytest.raises(ValueError, match=r"is a stream, .*label_weighting='precision'.*Dataset.from_list\(list"):
        prepared(stream, label_weighting="precision")
    assert len(prepared(Dataset.from_list(list(stream)), label_weighting="precision").examples) == 2
    assert len(list(prepared(stream, label_weighting="none").examples)) == 2
    for is_training in (True, False):
        with pytest.raises(ValueError, match="dataset is empty"):
            prepared(stream.filter(lambda row: False), is_training)
        with pytest.raises(ValueError, match=r"columns \['prompt', 'steps'\], expected one of .*rename_columns"):
            prepared(stream.map(lambda row: {"prompt": "", "steps": []}, remove_columns=list(rows[0])), is_training)
        with pytest.raises(ValueError, match=r"expected 'prompt' among them"):
            prepared(stream.remove_columns("prompt"), is_training)


def test_rollout_folders_are_accepted_in_every_spelling_of_their_path(tmp_path, monkeypatch):
    questions = load_questions([{"question": f"What is {index}?", "answer": str(index % 3)} for index in range(4)])
    options = {"num_solutions": 2, "num_continuations": 2, "grading": "exact", "answer_pattern": r"answer (\d+)"}
    collect_rollouts(questions, FakeSampler(), tmp_path / "rollouts", show_progress=False, **options)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "rollouts"
    expected = None
    for form in (str(folder), folder, "~/rollouts", Path("~/rollouts"), RolloutDataset(folder)):
        result = prepared(form, eta=math.inf, invalid_rows="drop")
        assert list(result.manifests.values()) == [RolloutDataset(folder).manifest] and len(result.examples) > 0
        expected = expected or result.examples[:]
        assert result.examples[:] == expected


def test_other_types_of_datasets_are_errors_with_a_working_fix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train dataset: .*not a rollout folder.*load_labelled_steps"):
        prepared(str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"rows.jsonl: got no .*not a rollout folder.*load_labelled_steps"):
        prepared(str(tmp_path / "rows.jsonl"))
    with pytest.raises(TypeError, match=r"is a list, expected .*Dataset.from_list\(rows\)"):
        prepared(ROWS)
    assert examples(Dataset.from_list(ROWS)) == examples(DATA)
    splits = DatasetDict({"train": DATA, "test": DATA})
    with pytest.raises(
        TypeError, match=r"is a DatasetDict, .*Pass one of its splits: dataset\['train'\], dataset\['t"
    ):
        prepared(splits)
    assert examples(splits["train"]) == examples(DATA)


@pytest.mark.parametrize(
    ("rows", "message", "mend"),
    [
        (
            {"prompt": ["7 ?"], "completions": [["7", "8"]], "labels": [["0.5", "1"]]},
            "labels', step 0: got '0.5' .*cast_column",
            lambda data: data.cast_column("labels", List(Value("float64"))),
        ),
        (
            {"prompt": ["7 ?"], "completions": ["7\n8"], "labels": [[0.5, 1.0]]},
            r"completions': got .*expected a list of texts.*dataset.map",
            lambda data: data.map(lambda row: {"completions": row["completions"].split("\n")}),
        ),
        (
            {"question": ["7 ?"], "steps": [["7", "8"]], "labels": [[0.5, 1.0]]},
            r"got columns .*'steps'\], expected one of .*dataset.rename_columns",
            lambda data: data.rename_columns({"question": "prompt", "steps": "completions"}),
        ),
        (
            {"question": ["7 ?"], "completions": [["7", "8"]], "labels": [[0.5, 1.0]]},
            "expected 'prompt' among them.*dataset.rename_columns",
            lambda data: data.rename_columns({"question": "prompt"}),
        ),
        (
            {"prompt": ["7 ?"], "completions": [["7", " ", "8"]], "labels": [[0.5, 0.7, 1.0]]},
            "an empty step .*Join it with the step before or after it",
            lambda data: data.map(lambda row: {"completions": ["7 ", "8"], "labels": [0.5, 1.0]}),
        ),
    ],
)
def test_the_proposed_fixes_of_rows_work(rows, message, mend):
    data = Dataset.from_dict(rows)
    with pytest.raises(ValueError, match=message):
        prepared(data)
    assert prepared(mend(data)).examples["step_labels"][:] == [[0.5, 1.0]]


def test_a_solution_that_is_too_long_fits_with_a_larger_max_length():
    with pytest.raises(ValueError, match="no labelled step within max_length.*Raise max_length"):
        prepared(DATA, max_length=5)
    assert prepared(DATA, max_length=50).counts["steps"] == 5


def test_text_forms_of_a_stream_are_converted_to_stepwise():
    rows = [{"text": "7 ки 8 ки", "value": [0.5, 1.0]}]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    for same in (stream, stream.map(lambda row: row)):
        assert list(to_stepwise(same)) == [{"prompt": "", "completions": ["7", "8"], "labels": [0.5, 1.0]}]
        assert [row["step_labels"] for row in prepared(same).examples] == [[0.5, 1.0]]
    stepwise = DATA.to_iterable_dataset().map(lambda row: row)
    assert list(to_stepwise(stepwise)) == ROWS
    with pytest.raises(ValueError, match="'input_ids' and 'labels', expected texts.*Pass the dataset to ERPRMTrainer"):
        to_stepwise(Dataset.from_list(list(token_ids(ROWS))))


def test_an_evaluation_uses_all_steps_and_no_weights():
    """`train_on_last_step_only` applies only to training, as in TRL's PRMTrainer."""
    data = Dataset.from_list([{**row, "label_std": [0.1] * len(row["labels"])} for row in ROWS])
    settings = {"train_on_last_step_only": True, "label_weighting": "precision"}
    trained, evaluated = (prepared(data, is_training, **settings).examples for is_training in (True, False))
    assert trained["step_labels"][:] == [[1.0], [0.0]] and "step_weights" in trained.column_names
    assert evaluated["step_labels"][:] == [row["labels"] for row in ROWS]
    assert "step_weights" not in evaluated.column_names


def test_an_evaluation_set_named_train_is_not_counted_as_training_data(tmp_path):
    path = save_tiny(tmp_path / "model", TOKENIZER)
    args = ERPRMConfig(
        str(tmp_path / "out"),
        train_on_last_step_only=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **{name: getattr(FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")},
    )
    sets = DatasetDict({"train": DATA, "test": DATA.select([0])})
    trainer = ERPRMTrainer(path, args, train_dataset=DATA.select([1]), eval_dataset=sets)
    steps = {name: counts["steps"] for name, counts in trainer.data_counts.items()}
    assert steps == {"train": 1, "eval_train": 5, "test": 2}
    assert {"eval_train_loss", "eval_test_loss"} <= trainer.evaluate().keys()
