"""A collection that real processes share, each with a thread of its own."""

from forked_launch import launch_forked


def collect_in_processes(collect, folder, num_processes):
    """Calls `collect(folder)`, a function of a test module here, in each process; all take part."""
    errors, printed = launch_forked(collect, [(num_processes, [str(folder)])])
    assert errors == [None], errors
    assert printed.count(f"world {num_processes}") == num_processes  # not silently alone
    assert len(list(folder.glob("rollouts-*.jsonl"))) == num_processes
