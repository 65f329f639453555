"""Launches by torchrun's agent, whose processes are forked from one that has imported everything: so a launch takes a
second instead of ten for each process."""

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
    Launches one group of processes after the other, each process with a thread of its own.

    Args:
        function (`Callable`): function of a module, called in every process.
        launches (`list`): for each launch the number of processes and the arguments, which JSON can hold.

    Returns:
        `tuple[list[str | None], str]`: the error of each launch, `None` where it ended well, and what was printed.
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
    import_module(module)  # and with it what its functions use, before the processes are forked
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
