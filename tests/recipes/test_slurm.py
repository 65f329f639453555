"""The Slurm launchers, run with replacements of Slurm's commands that record their arguments and run at once.

`sbatch` runs the job on this machine, and `srun` runs its tasks in parallel. In most tests, `python` and `accelerate`
also record their arguments and write the files of a stage. The last test uses the real `python`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes" / "slurm").glob("*.sh"))

SBATCH = """#!{python}
import json, os, subprocess, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(["sbatch", *sys.argv[1:]]) + "\\n")
number = sum(json.loads(line)[0] == "sbatch" for line in open(os.environ["NOTES"]))
own = [argument for argument in sys.argv[1:] if argument != "--parsable"]
while own and own[0].startswith("--") and own[0] != "--wrap":
    own.pop(0)
command = ["bash", "-c", own[1]] if own[0] == "--wrap" else ["bash", *own]
job = {{"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}}
job |= {{"SLURM_GPUS_ON_NODE": "8"}}
done = subprocess.run(command, env={{**os.environ, **job}}, stdout=sys.stderr)
print(f"{{number}};here")
sys.exit(done.returncode)
"""
SRUN = """#!{python}
import os, subprocess, sys
command = [argument for argument in sys.argv[1:] if argument != "--kill-on-bad-exit=1"]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}})
    for rank in range(2)
]
sys.exit(max([task.wait() for task in tasks]))
"""
SCONTROL = """#!{python}
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(["scontrol", *sys.argv[1:]]) + "\\n")
if sys.argv[1] == "show":
    print("localhost\\nnode2")
"""
# Replaces python and accelerate: writes the stage's last file, unless the environment makes it fail half-way
STAGE = """#!{python}
import json, os, pathlib, sys
rank = os.environ.get("RANK", os.environ.get("SLURM_NODEID", "0"))
if rank == "0":
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
    config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
    fields = dict(line.split(": ", 1) for line in config.read_text().splitlines())
    folder = pathlib.Path(fields["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    if config.stem == os.environ.get("DIES"):
        for number, whole in ((50, True), (100, False)):
            (folder / f"checkpoint-{{number}}").mkdir()
            if whole:
                (folder / f"checkpoint-{{number}}" / "trainer_state.json").touch()
        sys.exit(1)
    name = {{"collect": "manifest.json", "best_of_n": "best_of_n.png"}}.get(config.stem, "training_args.bin")
    (folder / name).write_text('{{"summary": {{}}}}')
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with the launchers, a chain of four stages, and the replaced commands first on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    shutil.copytree(ROOT / "recipes" / "slurm", tmp_path / "recipes" / "slurm")
    folder = tmp_path / "recipes" / "model-data"
    folder.mkdir()
    for stage in ("collect", "train_erprm", "best_of_n", "train_raft"):
        (folder / f"{stage}.yaml").write_text(f"output_dir: outputs/{stage}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    return tmp_path


@pytest.fixture
def stages(slurm):
    """Also replaces python and accelerate."""
    for name in ("python", "accelerate"):
        (slurm / "bin" / name).write_text(STAGE.format(python=sys.executable))
        (slurm / "bin" / name).chmod(0o755)
    return slurm


def bash(*arguments, **environment):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def notes(folder):
    """The calls since the last use of this function, except those for host names."""
    path = folder / "notes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in lines if line[:2] != ["scontrol", "show"]]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_valid_syntax(path):
    assert bash("-n", path).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_each_stage_depends_on_the_previous_stage(stages):
    done = bash("recipes/slurm/chain.sh", "recipes/model-data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "collect: job 1",
        "train_erprm: job 2",
        "best_of_n: job 3",
        "train_raft: job 4",
    ]
    calls = notes(stages)
    jobs = [call for call in calls if call[0] == "sbatch"]
    assert [[word for word in job if "afterok" in word] for job in jobs] == [
        [],
        ["--dependency=afterok:1"],
        ["--dependency=afterok:2"],
        ["--dependency=afterok:3"],
    ]
    assert [call[0] for call in calls if call[0] != "sbatch"] == ["python", "accelerate", "python", "accelerate"]
    launched = next(call for call in calls if call[0] == "accelerate")
    assert launched[1:] == [
        "launch",
        "--config_file",
        "accelerate_configs/multi_node_zero3.yaml",
        "--num_machines",
        "2",
        "--num_processes",
        "16",
        "--machine_rank",
        "0",
        "--main_process_ip",
        "localhost",
        "--main_process_port",
        "20002",
        "recipes/train_erprm.py",
        "--config",
        "recipes/model-data/train_erprm.yaml",
    ]


def test_finished_stages_are_skipped(stages):
    (stages / "outputs" / "collect").mkdir(parents=True)
    (stages / "outputs" / "collect" / "manifest.json").write_text('{"config": {}, "summary": {}}')
    (stages / "outputs" / "train_erprm").mkdir()
    (stages / "outputs" / "train_erprm" / "model.safetensors").touch()  # only weights: the stage failed while it saved
    done = bash("recipes/slurm/chain.sh", "recipes/model-data/")
    assert done.stdout.splitlines()[:2] == ["collect: finished (outputs/collect)", "train_erprm: job 1"]
    first = next(call for call in notes(stages) if call[0] == "sbatch")
    assert not any("afterok" in word for word in first)
    assert "job" not in bash("recipes/slurm/chain.sh", "recipes/model-data").stdout
    assert notes(stages) == []


def test_a_failed_chain_is_resumed(stages):
    broken = bash("recipes/slurm/chain.sh", "recipes/model-data", DIES="train_erprm")
    assert broken.returncode != 0
    assert [call[0] for call in notes(stages)] == ["sbatch", "python", "sbatch", "accelerate"]
    done = bash("recipes/slurm/chain.sh", "recipes/model-data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("collect: finished")
    trained = next(call for call in notes(stages) if call[0] == "accelerate")
    assert trained[-4:] == ["--config", "recipes/model-data/train_erprm.yaml", "--resume", "true"]
    # The incomplete checkpoint is moved away
    names = {path.name for path in (stages / "outputs" / "train_erprm").iterdir()}
    assert names == {"checkpoint-50", "unfinished-checkpoint-100", "training_args.bin"}


def test_raft_gets_no_resume_argument(stages):
    assert bash("recipes/slurm/chain.sh", "recipes/model-data", "train_raft", DIES="train_raft").returncode != 0
    notes(stages)
    assert bash("recipes/slurm/chain.sh", "recipes/model-data", "train_raft").returncode == 0
    (trained,) = [call for call in notes(stages) if call[0] == "accelerate"]
    assert "--resume" not in trained
    assert (stages / "outputs" / "train_raft" / "checkpoint-100").is_dir()


def test_an_output_dir_on_the_command_line_is_used(stages):
    (stages / "elsewhere" / "checkpoint-7").mkdir(parents=True)
    (stages / "elsewhere" / "checkpoint-7" / "trainer_state.json").touch()
    options = ["--output_dir", "elsewhere", "--eta", "inf"]
    script = ["recipes/slurm/train.sh", "train_erprm", "recipes/model-data/train_erprm.yaml"]
    done = subprocess.run(["sbatch", *script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = next(call for call in notes(stages) if call[0] == "accelerate")
    assert trained[-6:] == ["--resume", "true", *options]


@pytest.mark.parametrize("script", ["collect", "train"])
def test_a_job_at_its_time_limit_is_requeued(stages, script):
    """The batch script gets Slurm's warning signal while its tasks run."""
    (stages / "bin" / "srun").write_text("#!/bin/bash\ntouch running\nexec cat held\n")
    os.mkfifo(stages / "held")
    yaml = "recipes/model-data/train_erprm.yaml"
    arguments = {"collect": [yaml], "train": ["train_erprm", yaml]}[script]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    with subprocess.Popen(
        ["bash", "-c", f'bash recipes/slurm/{script}.sh "$@" & echo $! ; wait $!', "bash", *arguments],
        env={**os.environ, **job},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        process_id = int(running.stdout.readline())
        subprocess.run(["bash", "-c", "until [[ -e running ]]; do sleep 0.05; done"], timeout=60, check=True)
        os.kill(process_id, 10)
        os.close(os.open(stages / "held", os.O_RDWR))  # ends the task
        running.wait(timeout=60)
    assert ["scontrol", "requeue", "7"] in notes(stages)


def test_invalid_chains_are_refused(stages):
    done = bash("recipes/slurm/chain.sh", "recipes/model-data", "train_step_ppo")
    assert done.returncode == 1 and "expected the YAML of stage train_step_ppo" in done.stderr
    (stages / "outputs" / "train_raft").mkdir(parents=True)
    (stages / "outputs" / "train_raft" / "guard.json").touch()
    done = bash("recipes/slurm/chain.sh", "recipes/model-data", "train_raft")
    assert done.returncode == 1 and "the guard stopped train_raft" in done.stderr
    assert notes(stages) == []


@pytest.mark.slow("starts processes like Slurm")
def test_two_tasks_share_a_collection_on_dial(slurm):
    """The real recipe in the two processes of collect.sh: one shard per process, and every question once."""
    (slurm / "bin" / "python").write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    (slurm / "bin" / "python").chmod(0o755)
    options = ["--dataset_kwargs", '{"num_questions": 4, "seed": 1}', "--chunk_size", "1", "--num_continuations", "2"]
    yaml = str(ROOT / "recipes" / "dial" / "collect.yaml")
    done = subprocess.run(
        ["sbatch", "recipes/slurm/collect.sh", yaml, "--output_dir", str(slurm / "rollouts"), *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shards = [path.read_text().splitlines() for path in sorted((slurm / "rollouts").glob("rollouts-*.jsonl"))]
    chunks = [{json.loads(line)["chunk"] for line in shard} for shard in shards]
    assert chunks == [{0, 2}, {1, 3}]
    assert "summary" in json.loads((slurm / "rollouts" / "manifest.json").read_text())
