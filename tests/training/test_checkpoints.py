"""Tests incomplete and damaged checkpoints: a run resumes from the previous checkpoint, and logs the reason."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from broken_disks import no_file_above
from datasets import Dataset
from step_fakes import FakeScorer, by_text, questions, settings
from transformers import Trainer, TrainerState
from zoo import save_tiny, tiny_llama, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepPPOConfig, StepPPOTrainer
from erprm_trl.training.checkpoints import checkpoint_damage, flush_folder, set_unfinished_aside


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
DATA = Dataset.from_list(
    [
        {"prompt": f"Tom dial {start} . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, start / 9]}
        for start in range(1, 9)
    ]
)


class Killed(BaseException):
    """Stands for a killed process. `except Exception` does not catch it."""


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
    """A function that makes a trainer, and the folder and the final weights of its uninterrupted run."""
    make = request.param
    folder = tmp_path_factory.mktemp(make.__name__)
    trainer = make(folder, model_path)
    trainer.train(resume_from_checkpoint=True)  # the folder is empty, so training starts at the first step
    return make, folder, weights(trainer)


def resumed(make, folder, model_path, expected):
    trainer = make(folder, model_path)
    trainer.train(resume_from_checkpoint=True)
    final = weights(trainer)
    assert final.keys() == expected.keys() and all(torch.equal(final[name], expected[name]) for name in expected)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("moment", [(Trainer, "_save_rng_state"), (TrainerState, "save_to_json")])
def test_a_run_killed_in_its_second_checkpoint_resumes_from_the_first(
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
    assert "checkpoint-4 cannot be resumed from: trainer_state.json, which is written last, is missing" in caplog.text
    unfinished = {path.name for path in (tmp_path / "unfinished-checkpoint-4").iterdir()}
    assert "half.pt" in unfinished and (make is not ppo or "value_head.safetensors" in unfinished)
    assert checkpoint_damage(tmp_path / "checkpoint-4") is None


def watch_disk(monkeypatch, checkpoint):
    """Records the events of a checkpoint: each `fsync` of a file or folder in it or of its parent folder, each wait of
    the processes, and the creation of the trainer state."""
    events, fsync, replace, wait = [], os.fsync, os.replace, PartialState.wait_for_everyone
    save_to_json = TrainerState.save_to_json

    def flushing(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path == checkpoint.parent or path.is_relative_to(checkpoint):
            events.append(("flush", os.path.relpath(path, checkpoint), (checkpoint / "trainer_state.json").exists()))
        fsync(descriptor)

    def look():
        if (checkpoint / "trainer_state.json").exists() and not any(event[0] == "state" for event in events):
            files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
            events.append(("state", files))

    def replacing(source, target):
        replace(source, target)
        if Path(target).name == "trainer_state.json":
            look()

    def writing_state(self, path):
        save_to_json(self, path)
        look()

    def waiting(self):
        events.append(("wait", (checkpoint / "trainer_state.json").exists()))
        wait(self)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(TrainerState, "save_to_json", writing_state)
    monkeypatch.setattr(PartialState, "wait_for_everyone", waiting)
    return events


@pytest.mark.parametrize("save_only_model", [False, True])
@pytest.mark.parametrize("make", [erprm, ppo])
def test_the_state_is_written_after_all_other_files_are_on_disk(
    make, save_only_model, model_path, tmp_path, monkeypatch
):
    options = {"use_adaptive_entropy": True, "num_iterations": 4} if make is ppo else {}
    trainer = make(tmp_path, model_path, save_only_model=save_only_model, max_steps=2, **options)
    events = watch_disk(monkeypatch, tmp_path / "checkpoint-2")
    trainer.train()
    state = next(index for index, event in enumerate(events) if event[0] == "state")
    files = events[state][1] - {"trainer_state.json"}
    flushed = {event[1] for event in events[:state] if event[0] == "flush"}
    assert not any(event[-1] for event in events[:state])  # the state did not exist during the earlier events
    assert files | {".", ".."} <= flushed
    assert "trainer_state.json.tmp" in flushed  # the state is flushed before it is renamed
    assert events[state + 1][:2] == ("flush", ".")
    names = {"model.safetensors", *(() if save_only_model else ("optimizer.pt", "rng_state.pth"))}
    if make is ppo:
        names |= {"value_head.safetensors", "entropy_ctrl_state.json"}
        names |= set() if save_only_model else {"generation_0_of_1.safetensors"}
    assert names <= files
    # All processes wait for each other after the files are written, and again after they are flushed.
    waits = [index for index, event in enumerate(events[:state]) if event[0] == "wait"]
    assert {event[1] for event in events[waits[-2] : waits[-1]] if event[0] == "flush"} >= files


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("save_only_model", [False, True])
@pytest.mark.parametrize("make", [erprm, ppo])
def test_processes_that_do_not_save_wait_as_often_as_processes_that_save(
    make, save_only_model, model_path, tmp_path, monkeypatch
):
    waits = {}
    for saves in (True, False):
        trainer = make(tmp_path / str(saves), model_path, save_only_model=save_only_model, max_steps=2)
        trainer.train()
        with monkeypatch.context() as patch:
            events = watch_disk(patch, tmp_path / str(saves) / "checkpoint-2")
            patch.setattr(type(trainer.args), "should_save", saves)
            trainer._save_checkpoint(trainer.model, None)
        waits[saves] = sum(event[0] == "wait" for event in events)
        assert any(event[0] == "state" for event in events) is saves
    assert waits[True] == waits[False] >= 3


def test_a_killed_save_of_only_the_model_leaves_no_complete_checkpoint(model_path, tmp_path, monkeypatch):
    """At each `fsync`, either the state does not exist yet, or the checkpoint is complete."""
    trainer = erprm(tmp_path, model_path, save_only_model=True, max_steps=2)
    trainer.train()
    expected = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    fsync, calls = os.fsync, []

    def dying(last, descriptor):
        calls.append(1)
        fsync(descriptor)
        if len(calls) == last:
            raise Killed

    for moment in range(1, 100):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", partial(dying, moment))
            try:
                trainer._save_checkpoint(trainer.model, None)
                break
            except Killed:
                damage = checkpoint_damage(tmp_path / "checkpoint-2")
                names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
                assert names == expected if damage is None else "is missing" in damage
                assert "save_to_json" not in vars(trainer.state)
    assert moment > len(expected)


def test_file_systems_that_cannot_flush_folders_raise_no_error(tmp_path, monkeypatch):
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "sub" / "file").write_text("text")
    flush_folder(tmp_path / "run")
    flush_folder(tmp_path / "no folder")
    fsync = os.fsync

    def flushing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, "no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushing)
    code = errno.EINVAL
    flush_folder(tmp_path / "run")
    code = errno.EIO
    with pytest.raises(OSError, match="no"):
        flush_folder(tmp_path / "run")


def test_a_transformers_version_that_saves_its_state_differently_raises(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model, trial: None)
    with pytest.raises(RuntimeError, match="got no call of `TrainerState.save_to_json`"):
        erprm(tmp_path, model_path, max_steps=2).train()


@pytest.mark.slow("trains many times")
def test_the_error_for_a_full_disk_names_the_checkpoint_and_the_run_resumes(run, model_path, tmp_path, monkeypatch):
    make, _, expected = run
    save = Trainer._save_optimizer_and_scheduler

    def on_a_full_disk(self, output_dir):
        with no_file_above(1000 if "checkpoint-4" in output_dir else 10**9):
            save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", on_a_full_disk)
        with pytest.raises(OSError, match="checkpoint-4 could not be written .*Earlier checkpoints are intact"):
            make(tmp_path, model_path).train()
    resumed(make, tmp_path, model_path, expected)


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("make", [erprm, ppo])
def test_a_run_resumed_in_the_second_epoch_or_at_the_end_repeats_nothing(make, model_path, tmp_path):
    """An epoch has 4 updates with ERPRM, and 8 updates with PPO."""
    settings, checkpoints = {
        "erprm": ({"max_steps": 7}, (6, 7)),
        "ppo": ({"max_steps": 11, "save_steps": 10}, (10, 11)),
    }[make.__name__]
    uninterrupted = make(tmp_path, model_path, **settings)
    uninterrupted.train()
    expected = weights(uninterrupted)
    for checkpoint in checkpoints:
        trainer = make(tmp_path, model_path, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
        assert trainer.state.global_step == settings["max_steps"]
        assert all(torch.equal(weight, expected[name]) for name, weight in weights(trainer).items())


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path):
    path.write_bytes(b"\x93garbage\x00\xff" * 100)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("run", [erprm], indirect=True)
@pytest.mark.parametrize("damage", [truncated, garbage, emptied])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]
)
def test_a_damaged_checkpoint_is_renamed_and_the_log_names_the_file(run, tmp_path, damage, name, caplog):
    _, folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-4" / name)
    set_unfinished_aside(tmp_path / "run")
    assert f"checkpoint-4 cannot be resumed from: {name}" in caplog.text
    names = {path.name for path in (tmp_path / "run").glob("*checkpoint*")}
    assert names == {"checkpoint-2", "unfinished-checkpoint-4"}
    set_unfinished_aside(tmp_path / "run")  # the remaining checkpoint is complete
    assert len(caplog.records) == 1


@pytest.mark.slow("trains several times")
def test_a_checkpoint_given_by_its_path_must_be_complete(model_path, tmp_path):
    trainer = erprm(tmp_path, model_path)
    trainer.train()
    truncated(tmp_path / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(ValueError, match="checkpoint-4: optimizer.pt is damaged .*resume_from_checkpoint=True"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # Wrong bytes in a file of the right length are found when the file is loaded.
    path = tmp_path / "checkpoint-2" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    start = data.index(b"data.pkl") + 64
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checkpoint-2 cannot be loaded: .*Move it away and resume"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("run", [erprm], indirect=True)
def test_without_a_complete_checkpoint_training_starts_again_with_a_warning(run, model_path, tmp_path, caplog):
    make, folder, expected = run
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    resumed(make, tmp_path, model_path, expected)
    assert "contains no complete checkpoint. Training starts at the first step" in caplog.text


def test_a_second_training_in_the_same_folder_warns_of_the_checkpoints_in_it(model_path, tmp_path, caplog):
    trainer = erprm(tmp_path, model_path)
    trainer.args.max_steps = 0
    (tmp_path / "checkpoint-7").mkdir()
    trainer.train()
    assert f"{tmp_path / 'checkpoint-7'} is of an earlier training. This one starts at the first step" in caplog.text


@pytest.mark.slow("trains twice")
def test_a_checkpoint_is_incomplete_while_it_is_overwritten(model_path, tmp_path, monkeypatch):
    erprm(tmp_path, model_path).train()
    seen = []
    monkeypatch.setattr(Trainer, "_save_scaler", lambda self, folder: seen.append(checkpoint_damage(folder)))
    erprm(tmp_path, model_path).train()
    assert seen == ["trainer_state.json, which is written last, is missing"] * 2
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
