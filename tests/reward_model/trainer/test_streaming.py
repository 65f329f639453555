"""Training on a stream equals training on its rows, with one process and with several."""

import json

import erprm_runs
import pytest
from datasets import Dataset
from erprm_runs import FORMAT, ROWS
from forked_launch import launch_forked
from zoo import save_tiny, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def config(folder, **options):
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.1, "logging_steps": 1}
    settings |= {"save_strategy": "no", "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    return ERPRMConfig(str(folder), **{**settings, **FORMAT, **options})


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_training_on_a_stream_equals_training_on_its_rows_in_order(model_path, tmp_path):
    data = Dataset.from_list(ROWS)
    rows = ERPRMTrainer(model_path, config(tmp_path, train_sampling_strategy="sequential"), train_dataset=data)
    rows.train()
    stream = data.to_iterable_dataset().map(lambda row: row)
    assert stream.column_names is None  # `map` removes the column names of a stream
    streamed = ERPRMTrainer(model_path, config(tmp_path), train_dataset=stream, eval_dataset=stream)
    streamed.train()
    assert losses(streamed) == pytest.approx(losses(rows), abs=1e-6) and len(losses(rows)) == 4
    assert streamed.evaluate()["eval_loss"] == pytest.approx(rows.evaluate(data)["eval_loss"], abs=1e-6)
    counts = [log["num_tokens"] for log in streamed.state.log_history if "num_tokens" in log]
    assert counts == [log["num_tokens"] for log in rows.state.log_history if "num_tokens" in log]


def test_a_resumed_run_continues_the_stream(model_path, tmp_path):
    stream = Dataset.from_list(ROWS).to_iterable_dataset().map(lambda row: row)
    saved = {"save_strategy": "steps", "save_steps": 2}
    straight = ERPRMTrainer(model_path, config(tmp_path, **saved), train_dataset=stream)
    straight.train()
    again = ERPRMTrainer(model_path, config(tmp_path, **saved), train_dataset=stream)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert losses(again) == losses(straight) and len(losses(again)) == 4


def test_a_stream_needs_a_number_of_steps(model_path, tmp_path):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        ERPRMTrainer(model_path, config(tmp_path, max_steps=-1), train_dataset=stream)


@pytest.mark.slow("starts processes")
def test_several_processes_share_a_stream(model_path, tmp_path):
    for world in (1, 2, 3):
        (tmp_path / str(world)).mkdir()
    erprm_runs.train_on_stream(model_path, tmp_path / "1", 6)
    arguments = [(world, [model_path, str(tmp_path / str(world)), 6 // world]) for world in (2, 3)]
    errors, printed = launch_forked(erprm_runs.train_on_stream, arguments)
    assert errors == [None, None] and printed.count("world 2") == 2 and printed.count("world 3") == 3
    alone = json.loads((tmp_path / "1" / "0-of-1.json").read_text())
    assert len(alone) == 4 and alone[-1] < alone[0]
    for world in (2, 3):
        assert json.loads((tmp_path / str(world) / f"0-of-{world}.json").read_text()) == pytest.approx(alone, abs=1e-5)
