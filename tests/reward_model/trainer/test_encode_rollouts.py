"""Encoding a rollout folder: one pass, one Arrow file, and the same examples as labelling first and encoding then."""

import builtins
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sampler import FakeSampler
from zoo import word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, dial
from erprm_trl.reward_model.trainer import preprocessing
from erprm_trl.reward_model.trainer.preprocessing import encode_examples, encode_rollouts
from erprm_trl.rollouts import Question, RolloutDataset, collect_rollouts, label_source
from erprm_trl.rollouts import dataset as rollout_dataset


FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}")
POSTERIOR = {"eta": 2.0, "estimator": "posterior"}
WEIGHTED = {**POSTERIOR, "label_weighting": "precision"}


def collect(folder, num_continuations=3, **settings):
    return collect_rollouts(
        [Question(f"q{index}?", str(index % 3)) for index in range(9)],
        FakeSampler(),
        folder,
        num_solutions=2,
        num_continuations=num_continuations,
        grading="exact",
        answer_pattern=r"answer (\d+)",
        chunk_size=2,
        show_progress=False,
        **settings,
    )


def edit_rows(folder, edit):
    """Replaces each row of the shard by `edit(row)`."""
    shard = folder / "rollouts-00000.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    shard.write_text("".join(json.dumps(edit(row)) + "\n" for row in rows))
    return RolloutDataset(folder)


def one_more_token():
    tokenizer = word_level()
    tokenizer.add_tokens(["line"])
    return tokenizer


def encode(rollouts, eta=0.0, estimator=None, **options):
    return encode_rollouts(rollouts, eta, estimator, word_level(), FORMAT, **options)


def encode_in_two_steps(rollouts, eta=0.0, estimator=None, **options):
    return encode_examples(rollouts.labels(eta, estimator), word_level(), FORMAT, **options)


@pytest.fixture
def opened(monkeypatch):
    """Counts how often shards are opened."""
    paths, real = [], builtins.open

    def counting(file, *arguments, **options):
        if str(file).endswith(".jsonl"):
            paths.append(file)
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", counting)
    return paths


def arrow_files(folder):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob("*.arrow"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": math.inf},
        {"last_step_only": True},
        POSTERIOR,
        WEIGHTED,
        {**WEIGHTED, "max_length": 6, "invalid_rows": "drop"},
        {**WEIGHTED, "last_step_only": True},
    ],
    ids=["sample", "maximum", "last step", "posterior", "weighted", "short", "weighted last step"],
)
@pytest.mark.parametrize("allocation", ["fixed", "adaptive"])
def test_the_examples_equal_labelling_and_then_encoding_bitwise(tmp_path, allocation, options):
    rollouts = collect(tmp_path, allocation=allocation)
    one_pass, counts = encode(rollouts, **options)
    two_steps, expected_counts = encode_in_two_steps(rollouts, **options)
    assert one_pass.features == two_steps.features
    assert one_pass.to_list() == two_steps.to_list() and list(one_pass) == list(two_steps)
    assert counts == expected_counts and counts["kept"] == len(one_pass) > 2
    if options.get("max_length"):
        assert counts["dropped_steps"]


@pytest.mark.parametrize(
    ("options", "passes"), [({}, 1), (POSTERIOR, 2), (WEIGHTED, 2)], ids=["sample", "posterior", "weighted"]
)
def test_the_first_use_takes_one_pass_and_the_second_use_takes_none(tmp_path, opened, options, passes):
    """The posterior needs another pass to fit its prior, which does not write a file."""
    collect(tmp_path)
    opened.clear()
    first, _ = encode(RolloutDataset(tmp_path), **options)
    assert len(opened) == 1 + passes  # opening the folder reads it once
    files = arrow_files(tmp_path)
    assert len(files) == 1
    opened.clear()
    again, _ = encode(RolloutDataset(tmp_path), **options)
    assert len(opened) == 1 and arrow_files(tmp_path) == files
    assert again.to_list() == first.to_list()


def test_a_trainer_takes_one_pass_and_writes_one_file(tmp_path, opened, dial_format):
    collect(tmp_path / "rollouts")
    settings = {
        name: getattr(dial_format, name) for name in ("separator", "good_token", "bad_token", "prompt_template")
    }
    args = ERPRMConfig(str(tmp_path / "out"), **settings, use_cpu=True, bf16=False, report_to="none")
    opened.clear()
    first = ERPRMTrainer(dial.BASE_PATH, args, train_dataset=str(tmp_path / "rollouts"))
    assert len(opened) == 2 and len(arrow_files(tmp_path)) == 1
    opened.clear()
    again = ERPRMTrainer(dial.BASE_PATH, args, train_dataset=str(tmp_path / "rollouts"))
    assert len(opened) == 1 and len(arrow_files(tmp_path)) == 1
    assert first.data_counts == again.data_counts and list(first.train_dataset) == list(again.train_dataset)


def test_cached_labels_are_not_computed_again(tmp_path, monkeypatch, caplog):
    rollouts = collect(tmp_path)
    for make in (lambda: rollouts.labels(2.0, "posterior"), lambda: encode(rollouts, **WEIGHTED)[0]):
        first = make().to_list()
        with monkeypatch.context() as patch:
            patch.setattr(label_source, "labelled_example", None)
            patch.setattr(label_source, "PosteriorValues", None)
            caplog.clear()
            assert make().to_list() == first


@pytest.mark.parametrize(
    "change",
    [
        {"eta": 1.0},
        {"estimator": "posterior"},
        {"max_length": 40},
        {"last_step_only": True},
        {"prm_format": replace(FORMAT, prompt_template="say {question}")},
        {"tokenizer": one_more_token()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_that_changes_the_examples_changes_the_file_name(tmp_path, change):
    rollouts = collect(tmp_path)
    arguments = {"eta": 2.0, "estimator": "sample", "tokenizer": word_level(), "prm_format": FORMAT}
    encode_rollouts(rollouts, **arguments)
    encode_rollouts(rollouts, **{**arguments, **change})
    assert len(arrow_files(tmp_path)) == 2


def test_versions_and_rows_change_the_file_name(tmp_path, monkeypatch):
    rollouts = collect(tmp_path)
    encode(rollouts)
    for count, (module, name) in enumerate(
        [(preprocessing, "ENCODING_VERSION"), (rollout_dataset, "LABEL_VERSION")], start=2
    ):
        monkeypatch.setattr(module, name, 99)
        encode(rollouts)
        assert len(arrow_files(tmp_path)) == count
    changed = edit_rows(tmp_path, lambda row: {**row, "outcome_reward": 0.25})
    assert {labels[-1] for labels in encode(changed)[0]["step_labels"]} == {0.25}


def test_rewards_outside_the_range_are_errors_or_counted(tmp_path, caplog):
    collect(tmp_path)
    rollouts = edit_rows(tmp_path, lambda row: {**row, "outcome_reward": 1.5} if row["question_index"] == 2 else row)
    with pytest.raises(
        ValueError, match=r"Row \d+ of the train dataset has a label that is NaN or outside.*Rescale rewards"
    ):
        encode(rollouts)
    encoded, counts = encode(rollouts, invalid_rows="drop")
    assert counts["dropped_rows"] == {"a label that is NaN or outside [0, 1]": counts["rows"] - len(encoded)}
    assert 0 < len(encoded) < counts["rows"] and "rows are dropped" in caplog.text
    for options in ({}, WEIGHTED):  # the mean weight is over the kept rows
        encoded, counts = encode(rollouts, invalid_rows="drop", **options)
        two_steps, expected_counts = encode_in_two_steps(rollouts, invalid_rows="drop", **options)
        assert encoded.to_list() == two_steps.to_list() and counts == expected_counts


def test_solutions_without_continuations_are_errors_before_a_file_is_written(tmp_path):
    collect(tmp_path)
    rollouts = edit_rows(tmp_path, lambda row: {**row, "prefix_rewards": []} if row["question_index"] >= 4 else row)
    lacking = next(row for row in rollouts if row.lacks_continuations)
    for make in (lambda: encode(rollouts), lambda: rollouts.labels(0.0)):
        with pytest.raises(ValueError, match=f"{lacking.name} has .* num_continuations=0.*>= 1 to get labels"):
            make()
    assert arrow_files(tmp_path) == []


def test_errors_of_labels_are_raised_unchanged(tmp_path):
    collect(tmp_path)
    rollouts = edit_rows(
        tmp_path, lambda row: {**row, "prefix_rewards": [[2.0 for _ in rewards] for rewards in row["prefix_rewards"]]}
    )
    for make in (lambda: encode(rollouts, **POSTERIOR), lambda: rollouts.labels(**POSTERIOR)):
        with pytest.raises(ValueError, match="Rewards: got a reward that is NaN or outside"):
            make()
    assert arrow_files(tmp_path) == []
    with pytest.raises(ValueError, match="expected 'label_std' among them"):
        encode(rollouts, label_weighting="precision")
    with pytest.raises(ValueError, match="invalid_rows: got 'keep'"):
        encode(rollouts, invalid_rows="keep")


def test_unusable_solutions_are_also_counted_with_cached_labels(tmp_path, caplog):
    collect(tmp_path)
    empty = {"steps": [], "prefix_rewards": []}
    reasons = {0: {**empty, "unusable": "no steps"}, 5: {"unusable": "too odd"}}
    rollouts = edit_rows(tmp_path, lambda row: {**row, **reasons.get(row["question_index"], {})})
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            encoded, counts = encode(rollouts)
        assert "4 of 18 solutions get no labels: 2 with no steps, 2 with too odd." in caplog.text
        assert len(encoded) == counts["rows"] == 14


def test_with_several_processes_labels_are_written_first(tmp_path):
    rollouts = collect(tmp_path)
    one_pass, counts = encode(rollouts, **WEIGHTED)
    parallel, parallel_counts = encode(rollouts, **WEIGHTED, num_proc=2)
    assert parallel.to_list() == one_pass.to_list() and parallel_counts == counts


def test_weights_stay_scaled_in_derived_datasets(tmp_path):
    encoded, _ = encode(collect(tmp_path), **WEIGHTED)
    weights = [weight for row in encoded for weight in row["step_weights"]]
    assert sum(weights) / len(weights) == pytest.approx(1.0)
    fewer = encoded.remove_columns("question_id").shuffle(seed=0).select(range(5))
    expected = {tuple(row["input_ids"]): row["step_weights"] for row in encoded}
    assert all(row["step_weights"] == expected[tuple(row["input_ids"])] for row in fewer)
    assert encoded[:3]["step_weights"] == [row["step_weights"] for row in encoded.select(range(3))]
    assert encoded.map(lambda row: {"copy": row["step_weights"]})["copy"][:] == encoded["step_weights"][:]
