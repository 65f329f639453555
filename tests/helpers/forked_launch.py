"""Launches processes with torchrun's agent or with `accelerate launch`. They are forked from a server, a process that
has imported everything, so that a launch takes one second instead of ten per process. As a script, this file is the
server."""

import atexit
import gc
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path


IMPORTED = ("accelerate.commands.launch", "torch.distributed.run", "distributed_runs")
_server: subprocess.Popen | None = None


def launch_forked(function, launches):
    """
    Launches one group of processes after the other with torchrun's agent. Each process has one thread.

    Args:
        function (`Callable`): Function of a module that every process calls.
        launches (`list`): Number of processes and arguments (JSON values) of each launch.

    Returns:
        `tuple[list[str | None], str]`: the error of each launch, or `None`, and the printed output.
    """
    printed = _ask_server(_launch_with_torchrun, *_place(function), launches)
    *printed, last = printed.splitlines()
    return json.loads(last), "\n".join(printed)


def launch_with_accelerate(config, function, *arguments):
    """
    Launches processes with `accelerate launch` and a configuration.

    Args:
        config (`Path`): YAML file of the configuration.
        function (`Callable`): Function of a module that every process calls.
        *arguments: JSON values or paths.
    """
    arguments = [os.fspath(value) if isinstance(value, Path) else value for value in arguments]
    _ask_server(_launch_with_accelerate, str(config), *_place(function), arguments)


def _place(function):
    module = Path(function.__code__.co_filename)
    return [str(module.parent), module.stem, function.__name__]


def _ask_server(function, *arguments):
    """Calls a function of this file in a process of its own that the server forks, and returns what it printed."""
    global _server
    if _server is None:
        # In a session of its own, so that it can be ended with all its processes
        _server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                # DeepSpeed's CPU communication is compiled once for all tests of this environment
                "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix, "torch_extensions")),
            },
        )
        atexit.register(_end_server)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        _server.stdin.write(json.dumps([function.__name__, arguments, os.getcwd(), *outputs]) + "\n")
        _server.stdin.flush()
        code = _server.stdout.readline() if select.select([_server.stdout], [], [], 900)[0] else "no end in 900 s"
        printed, errors = (Path(path).read_text() if Path(path).exists() else "" for path in outputs)
    if code != "0\n":
        _end_server()
    assert code == "0\n", f"{code}: {errors[-6000:]}"
    return printed


def _end_server():
    global _server
    if _server is not None:
        os.killpg(_server.pid, signal.SIGKILL)
        _server.wait()
        _server.stdin.close()
        _server.stdout.close()
        _server = None


def _serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed logs to standard output while it is imported
    for name in IMPORTED:
        import_module(name)
    if importlib.util.find_spec("deepspeed") is not None:
        import_module("deepspeed")
    gc.collect()
    gc.freeze()  # ZeRO collects garbage at every trainer
    for line in sys.stdin:
        name, arguments, folder, stdout, stderr = json.loads(line)
        child = os.fork()
        if child == 0:
            _call(globals()[name], arguments, folder, stdout, stderr)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _call(function, arguments, folder, stdout, stderr):
    """Calls the function with its own outputs, and ends the process."""
    os.chdir(folder)
    for path, descriptor in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, flags), descriptor)
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(module, function, arguments):
    from accelerate import PartialState

    getattr(import_module(module), function)(*arguments)
    print(f"world {PartialState().num_processes}\n", end="", flush=True)
    PartialState().destroy_process_group()


def _launch_with_torchrun(folder, module, function, launches):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    sys.path.insert(0, folder)
    import_module(module)  # imports everything that its functions use before the processes are forked
    errors = []
    for num_processes, arguments in launches:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"launch-{len(errors)}",
            max_restarts=0,
            start_method="fork",
        )
        try:
            elastic_launch(config, _run)(module, function, arguments)
        except ChildFailedError as error:
            errors.append(str(error))
        else:
            errors.append(None)
    print(json.dumps(errors))


def _launch_with_accelerate(config, folder, module, function, arguments):
    """What `accelerate launch` does, but its agent forks this process instead of starting Python."""
    from accelerate.commands import launch
    from torch.distributed import run

    sys.path.insert(0, folder)
    import_module(module)
    elastic_launch = run.elastic_launch

    def launch_forked_processes(config, entrypoint):
        config.start_method = "fork"
        return lambda *command: elastic_launch(config, _run)(module, function, arguments)

    run.elastic_launch = launch_forked_processes
    options = ["--config_file", config, "--main_process_port", "0", "script.py"]
    launch.launch_command(launch.launch_command_parser().parse_args(options))


if __name__ == "__main__":
    _serve()
