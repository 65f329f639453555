"""Runs a command in several processes, with accelerate."""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from .outcome import STOPPED_BY_GUARD, UsageError
from .recipes import find_accelerate_config, read_config


# torchrun sets the first variable in each process, and `accelerate launch` the second if it starts only one.
_SET_BY_LAUNCHERS = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
# `accelerate launch` sets it for a single process only. Without it, `TrainingArguments` reads no configuration of
# accelerate, and each of several processes on CPUs trains alone unless `use_cpu` is set as well.
USE_CPU = "ACCELERATE_USE_CPU"


def is_launched() -> bool:
    """Whether this process was started by accelerate or torchrun."""
    return any(name in os.environ for name in _SET_BY_LAUNCHERS)


def is_on_cpu() -> bool:
    """Whether the configuration of accelerate says that all processes use CPUs."""
    return os.environ.get(USE_CPU, "").lower() in ("true", "1")


def lacks_accelerator() -> bool:
    """Whether a single process runs without an accelerator. False for commands that have not imported torch."""
    torch = sys.modules.get("torch")
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return alone and torch is not None and not torch.accelerator.is_available()


def end_process(code: int) -> None:
    """
    Ends a process of a process group with an exit code, without finalizing Python. Returns if there is no group.

    A worker thread of a Gloo group releases the tensors of a collective after the collective has returned, and takes
    the GIL to do so. If Python is finalizing at that moment, the thread is unwound through a destructor, and the
    process aborts with "terminate called without an active exception". Only the group's destructor waits for these
    threads, and after `DistributedDataParallel` has used a group, it never runs.
    """
    torch = sys.modules.get("torch")  # not imported only for this
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if code in (0, STOPPED_BY_GUARD):  # after other errors, the other processes may still use the group
        torch.distributed.destroy_process_group()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch_options(
    accelerate_config: str | None, num_processes: str | None, others: Sequence[str], unknown: Sequence[str]
) -> list[str]:
    """
    The options for `accelerate launch`, empty if nothing asks for a launch.

    Args:
        accelerate_config (`str`, *optional*):
            File, or name of a shipped configuration.
        num_processes (`str`, *optional*):
            Number of processes.
        others (`Sequence[str]`):
            Keys and values of a YAML file that are no fields of the stage. They may hold `--accelerate_config` too.
        unknown (`Sequence[str]`):
            Words of the command line that are no fields of the stage.
    """
    others = list(others)
    if "--accelerate_config" in others:
        index = others.index("--accelerate_config")
        accelerate_config = accelerate_config or others[index + 1]
        del others[index : index + 2]
    options = [*others, *unknown]
    if num_processes is not None:
        options = ["--num_processes", num_processes, *options]
    if accelerate_config is not None:
        options = ["--config_file", str(find_accelerate_config(accelerate_config)), *options]
    return options


def not_of_accelerate(options: Sequence[str]) -> list[str]:
    """The options that `accelerate launch` does not have, or the first word if it is no option."""
    from accelerate.commands.launch import launch_command_parser

    if not options[0].startswith("-"):
        return [options[0]]
    known = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    return [word for word in options if word.startswith("--") and word.partition("=")[0] not in known]


def launch(options: Sequence[str], command: Sequence[str]) -> int:
    """
    Runs `python -m erprm_trl` in the processes that accelerate starts.

    Args:
        options (`Sequence[str]`):
            Options of `accelerate launch`.
        command (`Sequence[str]`):
            Command and arguments of `erprm`.

    Returns:
        `int`: exit code of the first process that failed, otherwise 0.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        arguments = launch_command_parser().parse_args([*options, "--module", "erprm_trl", *command])
    except SystemExit as stop:
        raise UsageError(f"accelerate launch does not take {' '.join(options)}.") from stop
    if arguments.cpu or (arguments.config_file and read_config(arguments.config_file).get("use_cpu")):
        os.environ[USE_CPU] = "true"
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
