"""Two real processes pick the same solutions and train the same policy as one does, by DDP and by ZeRO-3."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from erprm_trl import dial
from erprm_trl.dial.chain import FORMAT
from erprm_trl.policy.raft_config import RAFTConfig
from erprm_trl.policy.raft_trainer import RAFTTrainer


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_raft_ddp import train
train(sys.argv[1], batch_size=2, lora=sys.argv[2] == "lora")
"""


class Notes(TrainerCallback):
    """What wraps the model while it is trained."""

    def __init__(self, trainer):
        self.trainer, self.wrapper = trainer, None

    def on_step_end(self, args, state, control, **kwargs):
        self.wrapper = type(self.trainer.model_wrapped).__name__


def train(folder, batch_size, lora):
    """Two rounds; the first process writes what happened. A second trainer then continues with a third round."""
    losses, facts = [], {}
    for num_rounds in (2, 3):
        arguments = RAFTConfig(
            os.path.join(folder, "out"),
            num_rounds=num_rounds,
            num_generations=4,
            max_completion_length=64,
            generation_batch_size=5,  # processes make different numbers of forward passes
            chunk_size=3,
            drop_uniform=False,
            grading="exact",
            answer_pattern=dial.ANSWER_PATTERN,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            optim="sgd",  # Adam turns the last bits of a small gradient into whole steps
            learning_rate=3e-2,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = RAFTTrainer(
            dial.BASE_PATH,
            os.path.join(folder, "erprm"),
            arguments,
            train_dataset=Dataset.from_list(dial.make_questions(8, seed=1)),
            eval_dataset=Dataset.from_list(dial.make_questions(3, seed=2)),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )
        notes = Notes(trainer)
        trainer.add_callback(notes)
        trainer.train()
        losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(os.path.join(folder, "final"))
    if trainer.is_world_process_zero():
        facts = {
            "world": trainer.accelerator.num_processes,
            "type": str(trainer.accelerator.distributed_type),
            "wrapper": notes.wrapper,
            "losses": losses,
            "shards": sorted(path.name for path in Path(folder, "out", "round-0", "samples").glob("*.jsonl")),
        }
        Path(folder, "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def one(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora" if request.param else "full")
    save_reward_model(folder)
    train(str(folder), batch_size=4, lora=request.param)
    return folder


def save_reward_model(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).save_pretrained(folder / "erprm")
    AutoTokenizer.from_pretrained(dial.BASE_PATH).save_pretrained(folder / "erprm")
    FORMAT.save(folder / "erprm")


def launch(one, folder, module, *options, **environment):
    save_reward_model(folder)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=os.path.dirname(__file__)))
    command = [sys.executable, "-m", module, *options, str(script), str(folder), one.name.rstrip("0")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr[-3000:]


def assert_equal_runs(one, two, wrapper, distributed_type):
    first, second = (json.loads((folder / "facts.json").read_text()) for folder in (one, two))
    assert (first["world"], second["world"]) == (1, 2)
    assert (second["wrapper"], second["type"]) == (wrapper, distributed_type)
    assert second["shards"] == ["rollouts-00000.jsonl", "rollouts-00001.jsonl"]
    for index in range(3):
        picks = [
            [json.loads(line) for line in (folder / "out" / f"round-{index}" / "picks.jsonl").open()]
            for folder in (one, two)
        ]
        assert [pick.pop("score") for pick in picks[1]] == pytest.approx([pick.pop("score") for pick in picks[0]])
        assert picks[1] == picks[0]
    assert len(first["losses"]) == 6
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-5)
    # what save_model wrote, and what the round's folder holds, are the policy
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if one.name.startswith("lora") else "model.safetensors"
    weights = [load_file(folder / "final" / name) for folder in (one, two)]
    weights.append(load_file(two / "out" / "round-2" / "policy" / name))
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.allclose(other[name], weights[0][name], atol=1e-5) for name in other)


def test_two_processes_equal_one(one, tmp_path):
    launch(one, tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert_equal_runs(one, tmp_path, "DistributedDataParallel", "DistributedType.MULTI_CPU")


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero3_equals_one_process(one, tmp_path):
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "zero_stage": 3,
            "zero3_init_flag": True,
            "zero3_save_16bit_model": True,
            "deepspeed_multinode_launcher": "standard",
        },
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
        "use_cpu": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    launch(
        one,
        tmp_path,
        "accelerate.commands.launch",
        f"--config_file={tmp_path / 'config.json'}",
        "--main_process_port=0",
        DS_ACCELERATOR="cpu",
        # One compilation of DeepSpeed's CPU communication for all tests of this environment
        TORCH_EXTENSIONS_DIR=str(Path(sys.prefix, "torch_extensions")),
    )
    assert_equal_runs(one, tmp_path, "DeepSpeedEngine", "DistributedType.DEEPSPEED")
