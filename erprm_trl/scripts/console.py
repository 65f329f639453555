"""What a command shows on the terminal: titles of stages, progress bars, results and errors. Everything else that the
libraries log goes to a file."""

import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..io.atomic_files import make_folder


PACKAGE = __name__.split(".")[0]
MOST_BUFFERED = 10_000  # records that are kept until the log file is known
# DeepSpeed gives its logger a handler for standard output, and logs, at the moment when it is imported.
LOGS_AT_IMPORT = "DeepSpeed"
# vLLM logs in processes of its own, which read its level here.
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING"}

logger = logging.getLogger(__name__)


def is_main_process() -> bool:
    """Whether this is the first process of the run, or the only one. No process group is needed."""
    return os.environ.get("RANK", "0") == "0"


class Console:
    """
    The state of a command's output, from [`quiet`].

    Args:
        verbose (`bool`):
            Whether logs go to the terminal instead of a file.
    """

    def __init__(self, verbose: bool):
        self.verbose = verbose
        self.log_file: Path | None = None
        self._undo = ExitStack()
        self._buffer: _Buffer | None = None
        self._file_handler: logging.Handler | None = None

    def __enter__(self) -> "Console":
        root = logging.getLogger()
        self._undo.callback(root.setLevel, root.level)
        root.setLevel(min(root.level or logging.INFO, logging.INFO))
        self._set(warnings, "showwarning", _log_warning)
        if hasattr(sys.stdout, "reconfigure"):  # results keep their place between the stages in a pipe too
            self._undo.callback(sys.stdout.reconfigure, line_buffering=sys.stdout.line_buffering)
            sys.stdout.reconfigure(line_buffering=True)
        terminal = _Terminal(self.verbose)
        if self.verbose:
            terminal.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        else:
            self._buffer = _Buffer()
            self._add_handler(self._buffer)
            deepspeed = logging.getLogger(LOGS_AT_IMPORT)
            deepspeed.addFilter(_send_to_root)
            self._undo.callback(deepspeed.removeFilter, _send_to_root)
            self.take_over_loggers()
        self._add_handler(terminal)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception) and self._file_handler is not None:
            record = logger.makeRecord(
                logger.name, logging.ERROR, __file__, 0, "The command failed.", (), (kind, error, traceback)
            )
            self._file_handler.handle(record)
        self._undo.close()

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Calls a function at the end of the command, also after an error."""
        self._undo.callback(callback)

    def write_to(self, log_file: str | Path) -> None:
        """
        Sends logs to a file from now on, also those that were made before, and prints its path. Of several processes
        each has a file of its own. With `verbose`, or if there is a file already, this does nothing.

        Args:
            log_file (`str` or `Path`):
                File to append to. Its folder is made.

        Raises:
            `OSError`: if the file cannot be written.
        """
        if self.verbose or self.log_file is not None:
            return
        path = Path(log_file)
        path = make_folder(path.parent) / path.name
        if not is_main_process():
            path = path.with_name(f"{path.stem}.rank-{os.environ['RANK']}{path.suffix}")
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._undo.callback(handler.close)
        self._add_handler(handler)
        for record in self._buffer.records:
            handler.handle(record)
        logging.getLogger().removeHandler(self._buffer)
        self.log_file, self._file_handler = path, handler
        self._silence_bars()
        self.take_over_loggers()
        for name, value in ENVIRONMENT.items():
            if name not in os.environ:
                os.environ[name] = value
                self._undo.callback(os.environ.pop, name, None)
        _say(f"Log: {path}")

    def take_over_loggers(self) -> None:
        """Takes away the handlers with which libraries that were imported by now log to the terminal themselves."""
        if self.verbose:
            return
        loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
        for library in loggers:
            for handler in getattr(library, "handlers", [])[:]:
                # Subclasses write elsewhere: to files, or into memory.
                if type(handler) is logging.StreamHandler and library.name != LOGS_AT_IMPORT:
                    library.removeHandler(handler)
                    self._undo.callback(library.addHandler, handler)
                    self._set(library, "propagate", True)

    def _silence_bars(self) -> None:
        """Switches off the bars that transformers and datasets show for each model and data set that they load."""
        import datasets
        from huggingface_hub import utils as hub
        from transformers.utils import logging as transformers_logging

        if transformers_logging.is_progress_bar_enabled():
            were_shown = not hub.are_progress_bars_disabled()
            transformers_logging.disable_progress_bar()
            self._undo.callback(transformers_logging.enable_progress_bar)
            if were_shown:  # transformers switches off the bars of downloads too, which take long
                hub.enable_progress_bars()
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            self._undo.callback(datasets.enable_progress_bars)

    def _set(self, owner, name: str, value) -> None:
        self._undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def _add_handler(self, handler: logging.Handler) -> None:
        logging.getLogger().addHandler(handler)
        self._undo.callback(logging.getLogger().removeHandler, handler)


_current: Console | None = None


@contextmanager
def quiet(log_file: str | Path | None = None, verbose: bool = False) -> Iterator[Console]:
    """
    Runs a command with a readable terminal.

    In the context, log records and Python warnings go to the log file with time and level. Errors are shown on the
    terminal as well, and so are the warnings of this package. The bars that libraries show while they load models and
    data are off. At the end everything is as it was. In another `quiet`, the outer one stays in force.

    Args:
        log_file (`str` or `Path`, *optional*):
            Log file. While there is none, records are kept in memory, for [`Console.write_to`] to write as soon as the
            output folder is known. A name that begins with `_` is not pushed to the Hub with a model.
        verbose (`bool`, *optional*, defaults to `False`):
            Leave the libraries as they are, and show log records on the terminal.

    Yields:
        [`Console`]: its `write_to` names the log file later.

    Example:

    ```python
    >>> with quiet() as console:
    ...     (arguments,) = TrlParser(CollectConfig).parse_args_and_config()
    ...     console.write_to(Path(arguments.output_dir, "collect.log"))
    ...     main(arguments)
    ```
    """
    global _current
    if _current is not None:
        if log_file is not None:
            _current.write_to(log_file)
        yield _current
        return
    try:
        with Console(verbose) as _current:
            if log_file is not None:
                _current.write_to(log_file)
            yield _current
    finally:
        _current = None


def current() -> Console | None:
    """The console of the command that runs, or `None` outside of commands."""
    return _current


def is_quiet() -> bool:
    """Whether a command runs whose logs go to a file."""
    return _current is not None and not _current.verbose


def stage(title: str) -> None:
    """Prints the title of a stage, on one process, and logs it. Outside of commands nothing is printed."""
    if _current is not None:
        _current.take_over_loggers()
        _say(title)
    if is_quiet():
        logger.info("%s", title)


def _say(line: str) -> None:
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def _log_warning(message, category, filename, lineno, file=None, line=None) -> None:
    logging.getLogger("py.warnings").warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)


def _send_to_root(record: logging.LogRecord) -> bool:
    """Passes a record to the handlers of the root logger, and keeps it from those of its own."""
    logging.getLogger().handle(record)
    return False


class _Buffer(logging.Handler):
    """Keeps records until the log file is known."""

    def __init__(self):
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=MOST_BUFFERED)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record."""
        self.records.append(record)


class _Terminal(logging.StreamHandler):
    """Shows errors and, on one process, this package's warnings, next to a progress bar; with `verbose` everything."""

    def __init__(self, verbose: bool):
        super().__init__()
        self.verbose = verbose
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        is_ours = record.name.split(".")[0] == PACKAGE and record.levelno >= logging.WARNING
        return self.verbose or record.levelno >= logging.ERROR or (is_ours and is_main_process())

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record above the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
