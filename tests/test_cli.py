"""The command `erprm`: which commands there are, exit codes, errors, and what its help imports."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from recipe_runs import RECIPES, save_base_as_reward_model

import erprm_trl
from erprm_trl import cli
from erprm_trl.cli import COMMANDS
from erprm_trl.rollouts import CollectConfig
from erprm_trl.scripts.outcome import StoppedByGuard


NAMES = (
    "collect train inspect-labels score best-of-n processbench calibrate search raft grpo ppo pairs dpo export serve "
    "report memory quickstart env"
)


def test_every_command_has_a_module_with_its_main():
    assert list(COMMANDS) == NAMES.split()
    assert all(command.module == name.replace("-", "_") for name, command in COMMANDS.items())
    scripts = RECIPES.parent / "erprm_trl" / "scripts"
    for command in COMMANDS.values():
        assert "\ndef main(" in (scripts / f"{command.module}.py").read_text(encoding="utf-8")


def test_help_lists_the_commands(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name:<16}{command.summary}\n" in out for name, command in COMMANDS.items())
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"{erprm_trl.__version__}\n"


@dataclass
class StandInArguments:
    """Arguments of a command that stands for others."""

    error: str = field(default="", metadata={"help": "What goes wrong."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder."})


ERRORS = {
    "value": ValueError("seed: got 1, expected 2."),
    "file": FileNotFoundError(2, "No such file or directory", "rows.jsonl"),
    "bug": KeyError("steps"),
    "guard": StoppedByGuard("`kl` is 9, expected at most 2."),
    "interrupt": KeyboardInterrupt(),
}


def stand_in(arguments: StandInArguments) -> None:
    """Prints, or fails."""
    if arguments.error:
        raise ERRORS[arguments.error]
    print("done")


@pytest.fixture
def erprm(monkeypatch):
    """Runs the stand-in as `erprm memory`."""
    import erprm_trl.scripts.memory

    monkeypatch.setattr(erprm_trl.scripts.memory, "main", stand_in)
    return lambda *argv: cli.main(["memory", *argv])


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        ([], 0, ""),
        (["--error", "value"], 1, "erprm memory: seed: got 1, expected 2.\n"),
        (["--error", "file"], 1, "erprm memory: rows.jsonl: No such file or directory.\n"),
        (["--error", "bug"], 1, "erprm memory: KeyError: 'steps' (--debug shows the traceback)\n"),
        (["--error", "guard"], 3, "erprm memory: `kl` is 9, expected at most 2.\n"),
        (["--error", "interrupt"], 130, "erprm memory: Interrupted.\n"),
        (
            ["--eror", "bug"],
            2,
            "erprm memory: Unknown option '--eror', expected perhaps --error. See erprm memory --help.\n",
        ),
        (
            ["--accelerate_config", "zero2"],
            2,
            "erprm memory: The command runs in one process, expected no --accelerate_config and no --num_processes. "
            "See erprm memory --help.\n",
        ),
    ],
    ids=str,
)
def test_exit_codes_and_one_line_per_error(erprm, capsys, argv, code, line):
    assert erprm(*argv) == code
    out, err = capsys.readouterr()
    assert err == line and out == ("" if code else "done\n")


def test_an_interrupted_command_says_how_to_resume(monkeypatch, capsys):
    assert cli.RESUMING.keys() <= cli.COMMANDS.keys()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["collect"]) == cli.main(["grpo"]) == 130
    first, second = capsys.readouterr().err.splitlines()
    assert first == "erprm collect: Interrupted. The same command resumes where it stopped."
    assert second == "erprm grpo: Interrupted. If a checkpoint was saved, add --resume true to resume from it."


def test_debug_shows_the_traceback(erprm, capsys):
    assert erprm("--error", "bug", "--debug") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_log_file_holds_the_traceback(erprm, capsys, tmp_path):
    assert erprm("--error", "value", "--output_dir", str(tmp_path / "out")) == 1
    err = capsys.readouterr().err
    log = tmp_path / "out" / "_memory.log"
    assert err == f"Log: {log}\nerprm memory: seed: got 1, expected 2.\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_several_processes_say_which_of_them_failed(erprm, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    erprm("--error", "value")
    assert capsys.readouterr().err == "erprm memory (process 1): seed: got 1, expected 2.\n"


def test_an_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "erprm: Unknown command 'trian'. Did you mean erprm train?\n"
    assert cli.main(["xyz"]) == 2
    assert capsys.readouterr().err == "erprm: Unknown command 'xyz'. See erprm --help.\n"


def test_help_of_a_command_exits_with_0(capsys):
    assert cli.main(["memory", "--help"]) == 0
    assert "memory arguments:" in capsys.readouterr().out


@pytest.fixture
def launched(monkeypatch):
    """What would be launched."""
    calls = []

    def launch(options, command):
        calls.append((options, command))
        return 5

    monkeypatch.setattr("erprm_trl.scripts.launcher.launch", launch)
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_options_of_accelerate_launch_the_command(launched, monkeypatch):
    argv = ["collect", "--recipe", "dial", "--seed", "2", "--num_processes", "2", "--mixed_precision", "no", "--debug"]
    monkeypatch.chdir(RECIPES.parent)
    assert cli.main([*argv, "--accelerate_config", "cpu_ddp"]) == 5
    recipe, config = RECIPES / "dial" / "collect.yaml", RECIPES.parent / "accelerate_configs" / "cpu_ddp.yaml"
    assert launched == [
        (
            ["--config_file", str(config), "--num_processes", "2", "--mixed_precision", "no"],
            ["collect", "--seed", "2", "--config", str(recipe), "--debug"],
        )
    ]


def test_a_yaml_file_may_ask_for_a_launch(launched, tmp_path, monkeypatch, capsys):
    config = tmp_path / "collect.yaml"
    config.write_text("accelerate_config: cpu_ddp\nnum_processes: 2\nmodel_name_or_path: m\ndataset_name: d\n")
    out = ["--output_dir", str(tmp_path / "out")]
    assert cli.main(["collect", "--config", str(config), *out]) == 5
    ((options, command),) = launched
    assert options[2:] == ["--num_processes", "2"] and command == ["collect", *out, "--config", str(config)]
    # A process that was launched with the same file runs the command.
    launched.clear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr("erprm_trl.scripts.collect.main", stand_in_for_collect)
    assert cli.main(["collect", "--config", str(config), *out]) == 0
    assert launched == [] and "collected 2" in capsys.readouterr().out


def stand_in_for_collect(config: CollectConfig) -> None:
    """Prints a field."""
    print("collected", config.num_solutions)


def test_an_option_that_neither_the_command_nor_accelerate_has(launched, capsys):
    argv = ["collect", "--recipe", "dial", "--num_procesess", "2"]
    assert cli.main(argv) == 2 and launched == []
    assert "Unknown option '--num_procesess'" in capsys.readouterr().err


def test_without_removes_words_in_their_order():
    words = ["--seed", "2", "--num_machines", "2", "--name", "a"]
    assert cli.without(words, ["--num_machines", "2"]) == ["--seed", "2", "--name", "a"]
    assert cli.without(words, []) == words


@pytest.mark.slow("starts a process")
def test_help_is_answered_without_torch():
    """The configurations of trainers derive from `TrainingArguments`, whose module imports torch."""
    code = f"""
import contextlib, io, sys
from erprm_trl import cli
for name in [None, *{list(COMMANDS)}]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([name, "--help"] if name else []) == 0
    assert "usage: erprm" in out.getvalue()
    heavy = {{"torch", "transformers", "datasets", "peft", "matplotlib", "uvicorn"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow("starts processes")
def test_a_pipe_that_closes_is_no_error():
    command = f"{sys.executable} -m erprm_trl memory --help | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stdout.startswith("usage: erprm memory") and result.stderr == ""


@pytest.mark.slow("runs a command in a process")
def test_commands_run_as_a_module(tmp_path):
    rows = [{"prompt": "Tom dial 1 . right 2 . ?", "completion": "1 + 2 = 3ки3 + 0 = 3", "id": i} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_base_as_reward_model(tmp_path / "model")
    command = [sys.executable, "-m", "erprm_trl", "score", "--reward_model", model, "--output_dir", "scores"]
    result = subprocess.run([*command, "--dataset_name", "rows.jsonl"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scored = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scored] == [0, 1, 2] and len(scored[0]["step_scores"]) == 2
    lines = result.stdout.splitlines()
    mean = sum(row["score"] for row in scored) / 3
    assert lines[0] == f"{model} scored 3 of 3 solutions (6 steps). The mean score is {mean:.3g}."
    assert lines[-1] == "Scores: scores/scores.jsonl."
