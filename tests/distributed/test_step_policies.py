"""Step GRPO and PPO in two real processes, DDP and ZeRO-3, learn what one process does on the same global batch."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOTrainer

from erprm_trl import StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer, StepRewardFunction, dial
from erprm_trl.dial.chain import FORMAT


GROUP = 4
QUESTIONS = dial.make_questions(4, seed=5, min_moves=1, max_moves=2)
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_step_policies import train
train(sys.argv[1], sys.argv[2], batch_size=int(sys.argv[3]), lora=sys.argv[4] == "lora")
"""
ZERO3 = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: 3
  zero3_init_flag: true
  zero3_save_16bit_model: true
  deepspeed_multinode_launcher: standard
machine_rank: 0
num_machines: 1
num_processes: 2
mixed_precision: "no"
use_cpu: true
"""
TRAINERS = {"grpo": (StepGRPOTrainer, StepGRPOConfig, {}), "ppo": (StepPPOTrainer, StepPPOConfig, {"vf_coef": 0.5})}


def written(tokenizer, prompt, number):
    """The completion that stands for a sample: right, cut short, repeated or wrong, by its number in the group."""
    asked = dial.DialQuestion.parse(prompt)
    steps, position = [], asked.start
    for operator, amount in asked.moves:
        after = {"+": position + amount, "-": position - amount, "*": position * amount}[operator] % 20
        after = (after + (number == 3)) % 20
        steps.append(f"{position} {operator} {amount} = {after}")
        position = after
    steps = {0: [*steps, f"answer {position}"], 1: steps, 2: [*steps, *steps], 3: [*steps, f"answer {position}"]}[
        number
    ]
    ids = tokenizer(" ".join(f"{step} ки" for step in steps))["input_ids"]
    return ids if number == 2 else [*ids, tokenizer.eos_token_id]


def train(folder, kind, batch_size, lora=False):
    """Three updates on written completions; the first process writes weights, losses and what the wrapper was."""
    trainer_class, config_class, more = TRAINERS[kind]
    arguments = config_class(
        os.path.join(folder, "out"),
        max_steps=3,
        per_device_train_batch_size=batch_size,
        num_generations=GROUP,
        max_completion_length=48,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
        beta=0.1,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        **more,
    )
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    dataset = Dataset.from_list([{"prompt": row["question"], "answer": row["answer"]} for row in QUESTIONS])
    # By its path, so that under ZeRO-3 it is loaded beside a policy whose weights are split
    reward = StepRewardFunction(dial.BASE_PATH, scorer_kwargs={"prm_format": FORMAT})
    trainer = trainer_class(dial.BASE_PATH, reward, arguments, dataset, peft_config=peft_config)

    def write(prompt_ids, images, multimodal_fields, num_generations, *_):
        # Also the real generation runs once, so that its gathering of weights is tried.
        GRPOTrainer._generate_single_turn(trainer, prompt_ids[:1], images, multimodal_fields, 1)
        tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompt_ids)
        prompts = tokenizer.batch_decode(prompt_ids, skip_special_tokens=True)
        return [written(tokenizer, text, (first + row) % GROUP) for row, text in enumerate(prompts)], None

    trainer._generate_single_turn = write
    trainer.train()
    wrapper = type(trainer.model_wrapped).__name__
    trainer.save_model(os.path.join(folder, "model"))
    if trainer.is_world_process_zero():
        keys = ("loss", "value/loss", "value/explained_variance", "kl", "steps/accuracy", "steps/per_answer", "reward")
        facts = {
            "world": trainer.accelerator.num_processes,
            "type": str(trainer.accelerator.distributed_type),
            "wrapper": wrapper,
            "logs": [
                {key: log[key] for key in keys if key in log} for log in trainer.state.log_history if "loss" in log
            ],
        }
        with open(os.path.join(folder, "facts.json"), "w") as file:
            json.dump(facts, file)


def launch(folder, launcher, kind, batch_size, lora):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if launcher == "zero3":
        (folder / "zero3.yaml").write_text(ZERO3)
        command = [
            "accelerate.commands.launch",
            "--config_file",
            str(folder / "zero3.yaml"),
            "--main_process_port",
            port,
        ]
    else:
        command = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # One compilation of DeepSpeed's CPU communication for all tests of this environment
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix, "torch_extensions")),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command, str(script), str(folder), kind, str(batch_size), "lora" if lora else "full"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[done.stderr.find("Traceback") :][:9000]
    return json.loads((folder / "facts.json").read_text())


def weights(folder):
    file = next(Path(folder, "model").glob("*model.safetensors"))
    return load_file(file)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("launcher", ["ddp", "zero3"])
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_two_processes_are_as_one(tmp_path, kind, launcher, lora):
    if launcher == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    (tmp_path / "one").mkdir()
    train(str(tmp_path / "one"), kind, batch_size=12, lora=lora)
    one = json.loads((tmp_path / "one" / "facts.json").read_text())
    # Six rows a process: the second group of four lies on both.
    two = launch(tmp_path / "two", launcher, kind, 6, lora)
    assert (one["world"], two["world"]) == (1, 2)
    assert two["wrapper"] == {"ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}[launcher]
    assert {"ddp": "MULTI_", "zero3": "DEEPSPEED"}[launcher] in two["type"]
    assert len(one["logs"]) == len(two["logs"]) == 3
    for left, right in zip(one["logs"], two["logs"], strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert float(right[key]) == pytest.approx(float(value), abs=1e-4), key
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert left.keys() == right.keys() and not any("value_head" in key for key in right)
    for key, value in left.items():
        torch.testing.assert_close(right[key].float(), value.float(), atol=1e-4, rtol=1e-3)
