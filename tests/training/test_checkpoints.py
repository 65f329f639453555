"""Checkpoints that were being written, or were damaged since: a run goes on from the one before, and says why."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from broken_disks import no_file_above
from datasets import Dataset
from step_fakes import FakeScorer, by_text, questions, settings
from transformers import Trainer, TrainerState
from zoo import save_tiny, tiny_llama, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepPPOConfig, StepPPOTrainer
from erprm_trl.training.checkpoints import checkpoint_damage, set_unfinished_aside


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
DATA = Dataset.from_list(
    [
        {"prompt": f"Tom dial {number} . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, number / 9]}
        for number in range(1, 9)
    ]
)


class Killed(BaseException):
    """What no handler catches."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def erprm(folder, model_path, **options):
    formatted = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    args = ERPRMConfig(
        str(folder), per_device_train_batch_size=2, learning_rate=1e-2, **formatted, **quiet, **{**SAVING, **options}
    )
    return ERPRMTrainer(model_path, args, train_dataset=DATA)


def ppo(folder, model_path, **options):
    tokenizer = word_level()
    return StepPPOTrainer(
        tiny_llama(len(tokenizer)),
        [FakeScorer(by_text)],
        args=StepPPOConfig(**settings(folder, **{**SAVING, **options})),
        train_dataset=questions(16),
        processing_class=tokenizer,
    )


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.fixture(scope="module", params=[erprm, ppo])
def run(request, tmp_path_factory, model_path):
    """A trainer's maker, and the folder and weights of its run that nobody killed."""
    make = request.param
    folder = tmp_path_factory.mktemp(make.__name__)
    trainer = make(folder, model_path)
    trainer.train(resume_from_checkpoint=True)  # of an empty folder: from the beginning
    return make, folder, weights(trainer)


def resumed(make, folder, model_path, expected):
    trainer = make(folder, model_path)
    trainer.train(resume_from_checkpoint=True)
    found = weights(trainer)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("moment", [(Trainer, "_save_rng_state"), (TrainerState, "save_to_json")])
def test_killed_in_the_second_checkpoint_a_run_goes_on_from_the_first(
    run, moment, model_path, tmp_path, monkeypatch, caplog
):
    make, _, expected = run
    owner, name = moment
    original = getattr(owner, name)

    def dying(self, path):
        if "checkpoint-4" in path:
            Path(path if name == "_save_rng_state" else path.rpartition("/")[0], "half.pt").write_bytes(b"PK")
            raise Killed
        original(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            make(tmp_path, model_path).train()
    resumed(make, tmp_path, model_path, expected)
    assert "checkpoint-4 is not whole: trainer_state.json, which is written last, is missing" in caplog.text
    unfinished = {path.name for path in (tmp_path / "unfinished-checkpoint-4").iterdir()}
    assert "half.pt" in unfinished and (make is not ppo or "value_head.safetensors" in unfinished)
    assert checkpoint_damage(tmp_path / "checkpoint-4") is None


@pytest.mark.slow("trains many times")
def test_a_full_disk_names_the_checkpoint_and_the_run_goes_on(run, model_path, tmp_path, monkeypatch):
    make, _, expected = run
    save = Trainer._save_optimizer_and_scheduler

    def on_a_full_disk(self, output_dir):
        with no_file_above(1000 if "checkpoint-4" in output_dir else 10**9):
            save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", on_a_full_disk)
        with pytest.raises(OSError, match="checkpoint-4 could not be written whole .*What was saved before it is not"):
            make(tmp_path, model_path).train()
    resumed(make, tmp_path, model_path, expected)


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("make", [erprm, ppo])
def test_in_the_second_epoch_and_at_the_end_no_example_and_no_update_comes_twice(make, model_path, tmp_path):
    """An epoch has 4 updates of ERPRM, and 8 of PPO."""
    settings, checkpoints = {
        "erprm": ({"max_steps": 7}, (6, 7)),
        "ppo": ({"max_steps": 11, "save_steps": 10}, (10, 11)),
    }[make.__name__]
    straight = make(tmp_path, model_path, **settings)
    straight.train()
    expected = weights(straight)
    for checkpoint in checkpoints:
        again = make(tmp_path, model_path, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
        assert again.state.global_step == settings["max_steps"]
        assert all(torch.equal(weight, expected[name]) for name, weight in weights(again).items())


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path):
    path.write_bytes(b"\x93garbage\x00\xff" * 100)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("run", [erprm], indirect=True)
@pytest.mark.parametrize("damage", [cut, garbage, emptied])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]
)
def test_a_damaged_checkpoint_is_named_and_set_aside(run, tmp_path, damage, name, caplog):
    _, folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-4" / name)
    set_unfinished_aside(tmp_path / "run")
    assert f"checkpoint-4 is not whole: {name}" in caplog.text
    names = {path.name for path in (tmp_path / "run").glob("*checkpoint*")}
    assert names == {"checkpoint-2", "unfinished-checkpoint-4"}
    set_unfinished_aside(tmp_path / "run")  # the one that is left is whole
    assert len(caplog.records) == 1


@pytest.mark.slow("trains several times")
def test_a_checkpoint_given_by_its_path_has_to_be_whole(model_path, tmp_path):
    trainer = erprm(tmp_path, model_path)
    trainer.train()
    cut(tmp_path / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(ValueError, match="checkpoint-4: optimizer.pt is damaged .*resume_from_checkpoint=True"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # Of the right length, and yet not what was saved: found when it is read.
    path = tmp_path / "checkpoint-2" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    start = data.index(b"data.pkl") + 64
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checkpoint-2 cannot be loaded: .*Move it away and resume"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("run", [erprm], indirect=True)
def test_with_nothing_whole_a_run_begins_anew_and_says_so(run, model_path, tmp_path, caplog):
    make, folder, expected = run
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    resumed(make, tmp_path, model_path, expected)
    assert "holds no whole checkpoint: the training begins at its first step" in caplog.text


@pytest.mark.slow("trains twice")
def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(model_path, tmp_path, monkeypatch):
    erprm(tmp_path, model_path).train()
    seen = []
    monkeypatch.setattr(Trainer, "_save_scaler", lambda self, folder: seen.append(checkpoint_damage(folder)))
    erprm(tmp_path, model_path).train()
    assert seen == ["trainer_state.json, which is written last, is missing"] * 2
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
