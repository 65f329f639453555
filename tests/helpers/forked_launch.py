"""Launches processes with torchrun's agent. They are forked from a process that has imported everything, so that a
launch takes one second instead of ten per process."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch_forked(function, launches):
    """
    Launches one group of processes after the other. Each process has one thread.

    Args:
        function (`Callable`): Function of a module that every process calls.
        launches (`list`): Number of processes and arguments (JSON values) of each launch.

    Returns:
        `tuple[list[str | None], str]`: the error of each launch, or `None`, and the printed output.
    """
    module = Path(function.__code__.co_filename)
    done = subprocess.run(
        [sys.executable, __file__, module.stem, function.__name__, json.dumps(launches)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": f"{module.parent}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *printed, errors = done.stdout.splitlines()
    return json.loads(errors), "\n".join(printed)


def _run(module, function, arguments):
    from accelerate import PartialState

    getattr(import_module(module), function)(*arguments)
    print(f"world {PartialState().num_processes}\n", end="", flush=True)
    PartialState().destroy_process_group()


def _main(module, function, launches):
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


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
