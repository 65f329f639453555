"""Labelled steps are read from every kind of source, and errors name a source that cannot be read."""

import gzip
import json
from pathlib import Path

import erprm_runs
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from recipe_runs import parse
from zoo import save_tiny, word_level

from erprm_trl import StepScorer, load_labelled_steps
from erprm_trl.scripts.train import DataArguments


ROWS = [
    {"prompt": "Tom 7 ?", "completions": ["7 + 1 = 8", "answer 8"], "labels": [0.75, 1.0]},
    {"prompt": "Ann 3 ?", "completions": ["3 + 1 = 4"], "labels": [0.5]},
]
MARKED = [{"input": "7 ? 7 + 1 = 8 ки", "label": "7 ? 7 + 1 = 8 +"}]


def save(folder, kind):
    """Saves the rows and returns their path."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind.endswith(".gz"):
        (folder / f"rows{kind}").write_bytes(gzip.compress(lines.encode()))
    elif kind in (".jsonl", ".json"):
        (folder / f"rows{kind}").write_text(lines)
    elif kind == ".parquet":
        Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    elif kind == "dataset":
        Dataset.from_list(ROWS).save_to_disk(folder / "rows")
        return folder / "rows"
    elif kind == "splits":
        splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[1:])}
        DatasetDict(splits).save_to_disk(folder / "rows")
        return folder / "rows"
    elif kind == "files":
        (folder / "rows").mkdir()
        (folder / "rows" / "train.jsonl").write_text(lines)
        (folder / "rows" / "test.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
        return folder / "rows"
    return folder / f"rows{kind}"


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".jsonl.gz", ".parquet", "dataset", "splits", "files"])
def test_files_and_folders_are_read(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = save(tmp_path, kind)
    for source in (path, str(path), f"~/{path.name}", Path("~", path.name)):
        data = load_labelled_steps(source)
        assert isinstance(data, Dataset) and list(data) == ROWS
    stream = load_labelled_steps(path, streaming=True)
    assert isinstance(stream, IterableDataset) and list(stream) == ROWS
    if kind in ("splits", "files"):
        assert list(load_labelled_steps(path, split="test")) == ROWS[1:]
        with pytest.raises(ValueError, match="dev"):
            load_labelled_steps(path, split="dev")
    else:
        with pytest.raises(ValueError, match=r"rows.*: got split='test' for a source without splits.*another file"):
            load_labelled_steps(path, split="test")


def test_csv_files_and_functions_are_read(tmp_path):
    (tmp_path / "rows.csv").write_text("input,label\n" + ",".join(MARKED[0].values()) + "\n")
    assert list(load_labelled_steps(tmp_path / "rows.csv")) == MARKED
    for streaming in (False, True):
        assert list(load_labelled_steps("erprm_runs:rows", streaming=streaming)) == erprm_runs.ROWS


def test_errors_name_a_missing_source(tmp_path):
    for name, message in ((tmp_path / "no.jsonl", "no file at .*no.jsonl"), (tmp_path / "no", "no file or folder")):
        with pytest.raises(ValueError, match=message):
            load_labelled_steps(name)
    (tmp_path / "rows.txt").write_text("7")
    with pytest.raises(ValueError, match=r"another kind at .*rows.txt.*expected .*\.jsonl.*Pass the path"):
        load_labelled_steps(tmp_path / "rows.txt")


def test_the_recipe_trains_on_a_file(tmp_path):
    path = save(tmp_path, ".jsonl")
    model = save_tiny(tmp_path / "model", word_level())
    words = {"--separator": "ки", "--good_token": "✓", "--bad_token": "✗", "--prompt_template": "check {question}"}
    settings = {
        "--model_name_or_path": model,
        "--dataset_name": str(path),
        "--eval_dataset_name": str(save(tmp_path, ".parquet")),
        "--output_dir": str(tmp_path / "out"),
        "--max_steps": "1",
        "--use_cpu": "true",
        "--bf16": "false",
        "--report_to": "none",
        **words,
    }
    for more in ([], ["--dataset_streaming", "true"]):
        recipe, arguments = parse("train_erprm", [part for pair in settings.items() for part in pair] + more)
        trainer = recipe.main(*arguments)
        assert trainer.state.global_step == 1
        assert [entry["eval_loss"] > 0 for entry in trainer.state.log_history if "eval_loss" in entry] == [True]
        StepScorer.from_pretrained(tmp_path / "out")
    # A new adapter is trained, and its training is continued from its saved folder.
    adapter = {**settings, "--output_dir": str(tmp_path / "adapter")}
    new = ["--use_peft", "true", "--lora_target_modules", "all-linear"]
    recipe, arguments = parse("train_erprm", [part for pair in adapter.items() for part in pair] + new)
    recipe.main(*arguments)
    again = {**settings, "--model_name_or_path": str(tmp_path / "adapter"), "--output_dir": str(tmp_path / "again")}
    recipe, arguments = parse("train_erprm", [part for pair in again.items() for part in pair])
    recipe.main(*arguments)
    assert (tmp_path / "again" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"eval_rollouts": "a", "eval_dataset_name": "b"},
            "got eval_rollouts='a' and eval_dataset_name='b', expected",
        ),
        ({"eval_rollouts": "a", "dataset_test_split": "test"}, "got dataset_test_split='test' and eval_rollouts='a'"),
        ({"eval_dataset_name": "a", "eval_mixture": ["b"]}, "got eval_dataset_name='a' and eval_mixture=.*'b'"),
        ({"dataset_test_split": "test"}, "dataset_test_split: got 'test' without --dataset_name.*--eval_dataset_name"),
    ],
)
def test_evaluation_data_that_would_not_be_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(rollouts="rollouts", **options)


def test_rollouts_are_evaluated_on_labelled_steps(tmp_path):
    data = DataArguments(rollouts="rollouts", eval_dataset_name=str(save(tmp_path, ".jsonl")))
    assert data.evaluation().column_names == ["prompt", "completions", "labels"]


def test_a_column_of_several_kinds_is_an_error(tmp_path):
    rows = [{"input": "Q Step 1: a ки", "value": [1, 0]}, {"input": "Q Step 1: a ки", "value": ["+", "-"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="rows.jsonl: a column holds values of several kinds .*all as texts"):
        load_labelled_steps(tmp_path / "rows.jsonl")
