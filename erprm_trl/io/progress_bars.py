"""Progress bars with the time left, for terminals, notebooks and log files."""

import os
import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from tqdm import tqdm

TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 60.0  # seconds between two updates, in a terminal and in a log file


class LineFile:
    """
    Writes each state of a progress bar on a new line, instead of overwriting the previous state.

    Args:
        file (`TextIO`):
            File to write to.
    """

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        """Writes the text without carriage returns, unless it is blank."""
        if line := text.strip():
            self._file.write(f"{line}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def progress_bar(total: int | None, title: str, *, unit: str, show: bool = True, **options: Any) -> "tqdm":
    """
    Makes a progress bar on standard error. If standard error is not a terminal, it prints one line per minute and a
    line at the end.

    Args:
        total (`int`, *optional*):
            Number of units of work. `None` if unknown.
        title (`str`):
            Text before the bar.
        unit (`str`):
            Name of the counted units, in the plural.
        show (`bool`, *optional*, defaults to `True`):
            Whether to show the bar. A hidden bar has the same methods.
        options:
            Additional arguments of `tqdm`.

    Returns:
        `tqdm`: the bar. Close it at the end.
    """
    from tqdm.auto import tqdm

    # A script may import ipykernel, e.g. to execute notebooks. Only a notebook replaces standard error.
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    is_log = not sys.stderr.isatty() and not is_notebook
    counts = "{percentage:3.0f}%" if is_log else "{percentage:3.0f}%|{bar:10}|"
    options.setdefault("miniters", 0)  # only the time since the last update decides when to print
    if total is not None:
        bar = f"{{desc}}: {counts} {{n:.0f}}/{{total}} {unit} [{{elapsed}}<{{remaining}}{{postfix}}]"
        options.setdefault("bar_format", bar)
    if is_log:
        # Any delay above 0 drops the line at the start. A delay below the clock's precision keeps the last line.
        options |= {"file": LineFile(sys.stderr), "mininterval": LOG_INTERVAL, "delay": 1e-9}
    else:
        # Pseudo-terminals of containers and CI often have the size 0, in which tqdm shows nothing.
        size = {"dynamic_ncols": True} if _has_size(sys.stderr) else {"ncols": 79, "nrows": 24}
        options |= {"mininterval": TERMINAL_INTERVAL, **size}
    return tqdm(total=total, desc=title, unit=f" {unit}", disable=not show, **options)


def _has_size(terminal) -> bool:
    try:
        return 0 not in os.get_terminal_size(terminal.fileno())
    except (OSError, ValueError):  # a notebook, or a file in memory
        return True
