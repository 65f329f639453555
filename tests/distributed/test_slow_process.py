"""Tests that a checkpoint of two real processes, one of which is slow, is complete only after both have written their
files."""

import json
import os
import time
from pathlib import Path

import distributed_runs
import pytest
from forked_launch import launch_with_accelerate
from zoo import save_tiny, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer


pytestmark = pytest.mark.slow("starts two processes, one of them slow")


class SlowTrainer(ERPRMTrainer):
    """A trainer in which the process that does not save the model writes its own file late. Both processes record
    whether the trainer state exists."""

    seen: list

    def _save_own_files(self, checkpoint):
        if not self.args.should_save:
            time.sleep(2)
            checkpoint.mkdir(exist_ok=True)
            Path(checkpoint, "late.bin").write_bytes(b"late")
        self.seen.append(["own files", Path(checkpoint, "trainer_state.json").exists()])

    def _save_checkpoint(self, model, trial):
        self.seen = []
        checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        fsync = os.fsync

        def flushing(descriptor):
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.seen.append([name, Path(checkpoint, "trainer_state.json").exists()])
            fsync(descriptor)

        os.fsync = flushing
        try:
            super()._save_checkpoint(model, trial)
        finally:
            os.fsync = fsync
        process = self.accelerator.process_index
        Path(self.args.output_dir, f"seen-{process}.json").write_text(json.dumps(self.seen))


def save_slowly(folder, save_only_model):
    """Trains one update, and saves its checkpoint."""
    formatted = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    args = ERPRMConfig(
        f"{folder}/run", max_steps=1, save_strategy="steps", save_steps=1, save_only_model=save_only_model,
        per_device_train_batch_size=2, **formatted, **quiet,
    )  # fmt: skip
    SlowTrainer(
        f"{folder}/model", args, train_dataset=distributed_runs.Dataset.from_list(distributed_runs.ROWS)
    ).train()


@pytest.mark.parametrize("save_only_model", [True, False])
def test_the_state_waits_for_the_slow_process(tmp_path, save_only_model):
    save_tiny(tmp_path / "model", word_level())
    launch_with_accelerate(distributed_runs.CONFIGS / "cpu_ddp.yaml", save_slowly, tmp_path, save_only_model)
    run = tmp_path / "run"
    saving, slow = (json.loads((run / f"seen-{process}.json").read_text()) for process in range(2))
    files = {path.name for path in (run / "checkpoint-1").iterdir()}
    assert {"late.bin", "model.safetensors", "trainer_state.json"} <= files
    assert ("rng_state_1.pth" in files) is not save_only_model
    assert ["own files", False] in slow
    flushed = {name for name, state_is_there in saving if not state_is_there}
    assert files - {"trainer_state.json"} <= flushed
