"""Commands in several processes: which options are accelerate's, exit codes, and two real processes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from recipe_runs import RECIPES

from erprm_trl.scripts import launcher
from erprm_trl.scripts.outcome import UsageError


CONFIGS = RECIPES.parent / "accelerate_configs"


def test_options_for_accelerate():
    assert launcher.launch_options(None, None, [], []) == []
    assert launcher.launch_options("zero2", "2", ["--main_process_port", "1"], ["--mixed_precision", "no"]) == [
        "--config_file",
        str(CONFIGS / "zero2.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        "1",
        "--mixed_precision",
        "no",
    ]
    from_yaml = ["--accelerate_config", "zero3", "--num_processes", "4"]
    assert launcher.launch_options(None, None, from_yaml, [])[1] == str(CONFIGS / "zero3.yaml")
    assert launcher.launch_options("zero2", None, from_yaml, [])[1] == str(CONFIGS / "zero2.yaml")


def test_options_that_accelerate_does_not_have():
    known = ["--num_machines", "2", "--mixed_precision=no", "--multi_gpu", "--main-process-port", "1"]
    assert launcher.not_of_accelerate(known) == []
    assert launcher.not_of_accelerate([*known, "--lerning_rate", "1"]) == ["--lerning_rate"]
    assert launcher.not_of_accelerate(["a.yaml", *known]) == ["a.yaml"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (subprocess.CalledProcessError(3, "python"), 3),
        (subprocess.CalledProcessError(-9, "python"), 137),
    ],
)
def test_the_exit_code_is_that_of_the_process(monkeypatch, error, code):
    from accelerate.commands import launch

    started = []

    def launch_command(arguments):
        started.append((arguments.config_file, arguments.module, arguments.training_script_args))
        if error is not None:
            raise error

    monkeypatch.setattr(launch, "launch_command", launch_command)
    monkeypatch.setenv(launcher.USE_CPU, "")  # recorded, so that what `launch` sets is removed after the test
    config = str(CONFIGS / "cpu_ddp.yaml")
    assert launcher.launch(["--config_file", config], ["train", "--seed", "1"]) == code
    assert started == [(config, True, ["train", "--seed", "1"])]
    assert launcher.is_on_cpu()  # told to the processes
    os.environ.pop(launcher.USE_CPU)
    launcher.launch(["--config_file", str(CONFIGS / "zero2.yaml")], ["train"])
    assert not launcher.is_on_cpu()
    launcher.launch(["--cpu"], ["train"])
    assert launcher.is_on_cpu()


def test_a_single_process_without_accelerator_trains_on_the_cpu(monkeypatch):
    import torch

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert launcher.lacks_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")  # several such processes would each train alone
    assert not launcher.lacks_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not launcher.lacks_accelerator()
    monkeypatch.delitem(sys.modules, "torch")  # `erprm collect --help` must not import it
    assert not launcher.lacks_accelerator()


def test_values_that_accelerate_refuses_are_usage_errors(capsys):
    with pytest.raises(UsageError, match="accelerate launch does not take --num_processes two"):
        launcher.launch(["--num_processes", "two"], ["train"])


@pytest.mark.parametrize("name", ["LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_processes_that_were_launched(monkeypatch, name):
    for variable in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    assert not launcher.is_launched()
    monkeypatch.setenv(name, "0")
    assert launcher.is_launched()


def test_processes_that_would_train_alone_are_an_error(monkeypatch):
    from trl import ModelConfig

    from erprm_trl.scripts.training import model_options

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="Launched as 2 processes, but each would train alone.*--use_cpu true"):
        model_options(ModelConfig("m"), SimpleNamespace(world_size=1, model_init_kwargs=None))
    options = model_options(ModelConfig("m"), SimpleNamespace(world_size=2, model_init_kwargs={"dtype": "bfloat16"}))
    assert options["model"] == "m" and options["args"].model_init_kwargs["dtype"] == "bfloat16"


IN_A_GROUP = """
import atexit, threading, time, torch
from erprm_trl.scripts.launcher import end_process
class Last:
    def __del__(self, print=print):
        print("finalized", flush=True)
last = Last()
end_process(1)  # without a group, nothing happens
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
atexit.register(lambda: print("exit handler, group:", torch.distributed.is_initialized()))
threading.Timer(0.1, lambda: print("thread")).start()
end_process(3)
"""


@pytest.mark.slow("starts a process")
def test_a_process_of_a_group_ends_without_finalizing():
    # A thread of the group that takes the GIL while Python finalizes would abort the process.
    ended = subprocess.run([sys.executable, "-c", IN_A_GROUP], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (3, "thread\nexit handler, group: False\n"), ended.stderr


@pytest.mark.slow("starts two processes that train")
def test_two_processes_train_one_reward_model(tmp_path):
    """12 solutions in batches of 4 on each of 2 processes: 2 updates are an epoch. Alone, they are 2/3 of an epoch."""
    config = tmp_path / "train.yaml"
    rows = [
        {"prompt": f"Tom dial {i} . right 1 . ?", "completions": [f"{i} + 1 = {i + 1}"], "labels": [True]}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (RECIPES / "dial" / "train_erprm.yaml").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("rollouts:")]
    config.write_text("\n".join(["num_processes: 2", "main_process_port: 0", *lines]))
    command = [sys.executable, "-m", "erprm_trl", "train", "--config", config, "--accelerate_config", "cpu_ddp"]
    options = ["--dataset_name", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "erprm"]
    options += ["--max_steps", "2", "--per_device_train_batch_size", "4"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    state = json.loads((tmp_path / "erprm" / "trainer_state.json").read_text())
    assert (state["global_step"], round(state["epoch"], 3)) == (2, 1.0)
    assert result.stdout.count("The reward model was saved") == 1
    assert result.stdout.splitlines()[-1].startswith("Next: erprm score --reward_model")
    assert (tmp_path / "erprm" / "_train.rank-1.log").is_file()
