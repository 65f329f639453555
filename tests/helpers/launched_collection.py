"""Runs a collection in several real processes with one thread each."""

from forked_launch import launch_forked


def collect_in_processes(collect, folder, num_processes):
    """Calls `collect(folder)`, a function of a test module, in each process."""
    errors, printed = launch_forked(collect, [(num_processes, [str(folder)])])
    assert errors == [None], errors
    assert printed.count(f"world {num_processes}") == num_processes  # the processes did not run as separate worlds
    assert len(list(folder.glob("rollouts-*.jsonl"))) == num_processes
