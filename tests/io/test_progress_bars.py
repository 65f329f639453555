"""Progress bars in a terminal and in a log file."""

import io
import os
import sys
import termios
from types import ModuleType

import pytest

from erprm_trl.io import progress_bars
from erprm_trl.io.progress_bars import LineFile, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_share_counts_and_time_left(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(progress_bars, "TERMINAL_INTERVAL", 0)
    with progress_bar(4, "Training", unit="updates") as bar:
        bar.update(1)
        bar.set_postfix_str("loss 0.5")
    text = bar.fp.getvalue()
    assert "Training:  25%|" in text and "1/4 updates [00:00<00:00, loss 0.5]" in text
    assert text.count("\n") == 1 and "it/s" not in text


@pytest.mark.parametrize("size", [(0, 0), (120, 40)])
def test_a_pseudo_terminal_with_and_without_a_size(monkeypatch, size):
    control, device = os.openpty()
    termios.tcsetwinsize(device, size[::-1])
    with open(device, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with progress_bar(4, "Training", unit="updates") as bar:
            bar.update(4)
        terminal.flush()
        shown = b""
        while b"\n" not in shown:  # the end of the bar
            shown += os.read(control, 10_000)
    os.close(control)
    assert "Training: 100%|" in shown.decode() and "4/4 updates [" in shown.decode()


def test_a_log_file_gets_whole_lines_and_none_at_the_start(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress_bar(40, "Training", unit="updates") as bar:
        assert log.getvalue() == ""
        for _ in range(40):
            bar.update(1)
    assert log.getvalue() == "Training: 100% 40/40 updates [00:00<00:00]\n"


def test_only_a_notebook_is_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))  # as after nbclient is imported
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress_bar(2, "Training", unit="updates") as bar:
        bar.update(2)
    assert log.getvalue() == "Training: 100% 2/2 updates [00:00<00:00]\n"

    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr("sys.stderr", cell)
    with progress_bar(2, "Training", unit="updates") as bar:
        bar.update(2)
    assert "\rTraining: 100%|##########| 2/2 updates [" in cell.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(59, 0), (61, 1)])
def test_a_log_file_gets_a_line_after_a_minute(monkeypatch, seconds, lines):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    bar = progress_bar(4, "Training", unit="updates")
    now = bar._time()
    monkeypatch.setattr(bar, "_time", lambda: now + seconds)
    bar.update(1)
    assert log.getvalue().count("\n") == lines
    assert ("25% 1/4 updates [01:01<03:03]" in log.getvalue()) == (lines == 1)
    bar.close()


def test_a_bar_that_is_not_shown_writes_nothing_and_can_be_used(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_bar(4, "Training", unit="updates", show=False) as bar:
        bar.update(1)
        bar.set_postfix_str("loss 0.5")
    assert terminal.getvalue() == ""


def test_an_unknown_total_is_counted(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress_bar(None, "Evaluating", unit="batches") as bar:
        bar.update(3)
    assert log.getvalue().startswith("Evaluating: 3 batches ")


def test_lines_keep_their_text():
    log = io.StringIO()
    for text in ("\rhalf   ", "\n", "\r", "\rall"):
        LineFile(log).write(text)
    assert log.getvalue() == "half\nall\n"
