"""What reaches the terminal and what reaches the log file, and that everything is as before afterwards."""

import logging
import os
import sys
import warnings

import datasets
import pytest
from transformers.utils import logging as transformers_logging

from erprm_trl.scripts import console
from erprm_trl.scripts.console import quiet, stage


library = logging.getLogger("a_library")
ours = logging.getLogger("erprm_trl.rollouts.collect")


def test_warnings_and_records_of_libraries_go_to_the_file(tmp_path, capsys):
    with quiet(tmp_path / "out" / "_train.log"):
        warnings.warn("an old name", UserWarning, stacklevel=1)
        library.warning("a default changed")
        library.info("loaded")
        library.debug("details")
        logging.getLogger("transformers.modeling_utils").warning("weights were not used")
        ours.info("a summary")
    text = (tmp_path / "out" / "_train.log").read_text()
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("UserWarning: an old name") and " WARNING py.warnings: " in lines[0]
    assert lines[1].endswith(" WARNING a_library: a default changed")
    assert lines[2].endswith(" INFO a_library: loaded")
    assert lines[3].endswith(" WARNING transformers.modeling_utils: weights were not used")
    assert lines[4].endswith(" INFO erprm_trl.rollouts.collect: a summary")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"Log: {tmp_path / 'out' / '_train.log'}\n"


def test_errors_and_our_own_warnings_are_shown_and_logged(tmp_path, capsys):
    with quiet(tmp_path / "log"):
        library.error("the disk is full")
        ours.warning("half of the solutions are unfinished")
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines == ["ERROR: the disk is full", "WARNING: half of the solutions are unfinished"]
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_an_exception_is_raised_and_logged_with_its_traceback(tmp_path, capsys):
    with pytest.raises(ValueError, match="eta"), quiet(tmp_path / "log"):
        raise ValueError("eta: got -1")
    assert "eta" not in capsys.readouterr().err  # whoever catches it prints it
    text = (tmp_path / "log").read_text()
    assert "Traceback" in text and "ValueError: eta: got -1" in text


def state():
    root = logging.getLogger()
    return {
        "level": root.level,
        "handlers": list(root.handlers),
        "showwarning": warnings.showwarning,
        "line_buffering": sys.stdout.line_buffering,
        "loading bars": transformers_logging.is_progress_bar_enabled(),
        "data bars": datasets.are_progress_bars_disabled(),
        "filters": list(logging.getLogger("DeepSpeed").filters),
        "transformers": (set(logging.getLogger("transformers").handlers), logging.getLogger("transformers").propagate),
        "current": console.current(),
        "environment": dict(os.environ),
    }


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_afterwards(tmp_path, caplog, verbose, fails):
    caplog.set_level(logging.WARNING)
    before = state()
    try:
        with quiet(tmp_path / "log", verbose):
            assert state() != before and console.is_quiet() is not verbose
            assert fails is False or 1 / 0
    except ZeroDivisionError:
        pass
    assert state() == before and not console.is_quiet()


def test_bars_of_libraries_are_off(tmp_path, capsys, monkeypatch):
    bars = sys.modules["datasets.utils.tqdm"]  # the tests' environment switches these bars off
    monkeypatch.setattr(bars, "_hf_datasets_progress_bars_disabled", False)
    monkeypatch.setattr(bars, "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    rows = datasets.Dataset.from_dict({"x": [1, 2]})
    with quiet(tmp_path / "log"):
        rows.map(lambda row: {"y": row["x"]})
        list(transformers_logging.tqdm(range(2), desc="Loading weights"))
    assert "Loading" not in (err := capsys.readouterr().err) and "Map" not in err
    rows.map(lambda row: {"z": row["x"]})
    list(transformers_logging.tqdm(range(2), desc="Loading weights"))
    assert "Loading" in (err := capsys.readouterr().err) and "Map" in err


def test_a_library_that_logs_to_the_terminal_itself(tmp_path, capfd, monkeypatch):
    """As datasets does, and as DeepSpeed does while it is imported."""
    handler = logging.StreamHandler(sys.__stderr__)
    deepspeed = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(deepspeed, "handlers", [])
    monkeypatch.setattr(library, "propagate", False)
    library.addHandler(handler)
    try:
        with quiet(tmp_path / "log"):
            library.warning("to the log")
            monkeypatch.setattr(deepspeed, "propagate", False)
            deepspeed.addHandler(logging.StreamHandler(sys.__stdout__))
            deepspeed.warning("Setting accelerator to CPU")
        assert library.handlers == [handler] and not library.propagate
        assert capfd.readouterr() == ("", f"Log: {tmp_path / 'log'}\n")
        assert [line.split(": ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()] == [
            "to the log",
            "Setting accelerator to CPU",
        ]
        deepspeed.warning("shown again")
        assert "shown again" in capfd.readouterr().out
    finally:
        library.removeHandler(handler)


def test_the_file_may_be_named_later(tmp_path, capsys):
    with quiet() as command:
        warnings.warn("from the parser", UserWarning, stacklevel=1)
        command.write_to(tmp_path / "log")
        library.warning("from main")
        command.write_to(tmp_path / "another")
    text = (tmp_path / "log").read_text()
    assert "from the parser" in text and "from main" in text and text.count("\n") == 2
    assert not (tmp_path / "another").exists() and capsys.readouterr().err.count("Log: ") == 1


def test_a_command_inside_another_uses_its_log(tmp_path):
    with quiet() as outer:
        with quiet(tmp_path / "log") as inner:
            assert inner is outer
        library.warning("after the inner one")
    assert "after the inner one" in (tmp_path / "log").read_text()


def test_a_second_run_appends(tmp_path):
    for run in ("first", "second"):
        with quiet(tmp_path / "log"):
            library.warning(run)
    assert [line[-6:].strip() for line in (tmp_path / "log").read_text().splitlines()] == ["first", "second"]


def test_verbose_shows_everything_and_writes_no_file(tmp_path, capsys):
    with quiet(tmp_path / "log", verbose=True):
        warnings.warn("an old name", UserWarning, stacklevel=1)
        library.info("loaded")
        stage("Training")
    err = capsys.readouterr().err
    assert "WARNING py.warnings: " in err and "INFO a_library: loaded" in err and err.endswith("Training\n")
    assert not (tmp_path / "log").exists()


def test_stages_are_printed_at_once_and_logged(tmp_path, capsys):
    stage("Outside of a command")
    with quiet(tmp_path / "log"):
        stage("Collecting")
        stage("Training")
    assert capsys.readouterr() == ("", f"Log: {tmp_path / 'log'}\nCollecting\nTraining\n")
    assert "INFO erprm_trl.scripts.console: Training" in (tmp_path / "log").read_text()


def test_only_the_main_process_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with quiet(tmp_path / "_train.log"):
        stage("Training")
        ours.warning("half of the solutions are unfinished")
        library.error("the disk is full")
    assert capsys.readouterr() == ("", "ERROR: the disk is full\n")
    assert [path.name for path in tmp_path.iterdir()] == ["_train.rank-1.log"]
    assert "unfinished" in (tmp_path / "_train.rank-1.log").read_text()


@pytest.mark.parametrize(("users", "expected"), [(None, "WARNING"), ("DEBUG", "DEBUG")])
def test_the_level_of_vllm_unless_the_user_sets_it(tmp_path, monkeypatch, users, expected):
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    if users is not None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", users)
    with quiet(tmp_path / "log"):
        assert os.environ["VLLM_LOGGING_LEVEL"] == expected
    assert os.environ.get("VLLM_LOGGING_LEVEL") == users


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), quiet(tmp_path / "file" / "log"):
        pass
    assert console.current() is None
