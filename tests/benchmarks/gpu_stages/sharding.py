"""Training of a reward model with ZeRO-3 and FSDP2 on one process, against the same training without them.

One process cannot show what sharding saves. It shows that the shipped configurations run on a GPU, that the losses are
the same, and what the wrapping costs.

As a script, this file is the launched training: `accelerate launch … sharding.py MODEL DATA RESULT UPDATES`.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path


ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_stages.references import reference_solutions  # noqa: E402 - also as a script


CONFIGS = ROOT / "accelerate_configs"
UPDATES = 8


def train(model: str, data: str, result: Path, updates: int) -> None:
    """Trains a reward model on reference solutions with labels that depend on the position, and writes its logs."""
    import torch
    from datasets import Dataset

    from erprm_trl import ERPRMConfig, ERPRMTrainer

    on_gpu = torch.cuda.is_available()
    questions, steps = reference_solutions(data, 16 * updates)
    rows = [
        {"prompt": question, "completions": lines, "labels": [(index % 3) / 2 for index in range(len(lines))]}
        for question, lines in zip(questions, steps, strict=True)
    ]
    args = ERPRMConfig(
        str(result.with_suffix("")), separator="\n", per_device_train_batch_size=16 if on_gpu else 2,
        gradient_accumulation_steps=1, max_steps=updates, logging_steps=updates // 2, logging_first_step=True,
        learning_rate=1e-5, bf16=on_gpu, use_cpu=not on_gpu, save_strategy="no", report_to="none", disable_tqdm=True,
        train_sampling_strategy="sequential", gradient_checkpointing=False, seed=0,
    )  # fmt: skip
    trainer = ERPRMTrainer(model, args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    if not trainer.accelerator.is_main_process:
        return
    logs = trainer.state.log_history
    speeds = [entry["perf/tokens_per_second"] for entry in logs if "perf/tokens_per_second" in entry]
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    result.write_text(json.dumps({"losses": losses, "tokens_per_second": speeds[-1], "memory_gib": memory}))


def command_of(name: str, on_gpu: bool) -> list[str]:
    """The beginning of the command that launches a training."""
    if name == "plain":
        return [sys.executable]
    config = {"ZeRO-3": "zero3" if on_gpu else "cpu_zero3", "FSDP2": "fsdp2"}[name]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    return [*launcher, "--num_processes", "1", *([] if on_gpu else ["--cpu", "--mixed_precision", "no"])]


def run(stage) -> None:
    """Launches the trainings one after the other."""
    import torch

    on_gpu = torch.cuda.is_available()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if not on_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for name in ("plain", "ZeRO-3", "FSDP2"):
        if name == "ZeRO-3" and not find_spec("deepspeed"):
            stage.record("sharding", name=name, note="deepspeed is not installed")
            continue
        if name == "FSDP2" and not on_gpu:
            stage.record("sharding", name=name, note="needs a GPU")
            continue
        result = stage.work / f"sharding-{name}.json"
        result.unlink(missing_ok=True)
        words = [
            __file__,
            str(stage.model),
            str(stage.train_data),
            str(result),
            "4" if stage.rehearse else str(UPDATES),
        ]
        started = time.monotonic()
        process = subprocess.run([*command_of(name, on_gpu), *words], env=environment, capture_output=True, text=True)
        sys.stderr.write(process.stderr)
        if result.exists():
            values = json.loads(result.read_text())
        else:
            values = {"note": f"exit status {process.returncode}: {process.stderr.strip()[-300:]}"}
        stage.record("sharding", name=name, seconds=time.monotonic() - started, **values)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
