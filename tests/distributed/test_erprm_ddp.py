"""Two real processes train as one does on the same global batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial


FORMAT = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}
# Solutions of one to four steps: the two processes' shares of a batch hold different numbers of labels.
ROWS = [
    {
        "prompt": f"Tom dial {number} . right 15 . ?",
        "completions": [f"{number} + 15 = {step}" for step in range(1 + number % 4)],
        "labels": [((number + step) % 5) / 4 for step in range(1 + number % 4)],
    }
    for number in range(8)
]
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_erprm_ddp import train
train(sys.argv[1], batch_size=2)
"""


def train(folder, batch_size):
    """Three updates over the rows; the first process writes weights, losses and what the wrapper was."""
    arguments = ERPRMConfig(
        os.path.join(folder, "out"),
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=3,  # uneven: the last evaluation batch is filled up with copies
        train_sampling_strategy="sequential",
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
        **FORMAT,
    )
    trainer = ERPRMTrainer(
        dial.BASE_PATH, arguments, train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS)
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        facts = {
            "world": trainer.accelerator.num_processes,
            "wrapper": type(trainer.model_wrapped).__name__,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "eval": {key: metrics[key] for key in ("eval_loss", "eval_brier", "eval_auc")},
            "tokens": [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry],
        }
        with open(os.path.join(folder, "facts.json"), "w") as file:
            json.dump(facts, file)
        torch.save(
            [parameter.detach() for parameter in trainer.model.parameters()], os.path.join(folder, "weights.pt")
        )


def test_two_processes_equal_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train(str(tmp_path / "one"), batch_size=4)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=os.path.dirname(__file__)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "facts.json").read_text()) for name in ("one", "two"))
    assert (one["world"], two["world"]) == (1, 2)
    assert two["wrapper"] == "DistributedDataParallel"
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-6, abs=1e-6)
    assert two["tokens"] == one["tokens"]
    weights = [torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("one", "two")]
    for left, right in zip(*weights, strict=True):
        assert torch.allclose(left, right, atol=1e-6)
