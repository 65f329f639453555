"""How a command ends: what it prints last, and the exceptions that have an exit code of their own."""

from .console import is_main_process


STOPPED_BY_GUARD = 3  # exit code


class UsageError(ValueError):
    """The command line or the YAML file cannot be used."""


class StoppedByGuard(RuntimeError):
    """The guard stopped the training of a policy."""


def print_outcome(*lines: str, next_command: str | None = None) -> None:
    """
    Prints the result of a stage, once for all processes.

    Args:
        *lines (`str`):
            Sentences and tables.
        next_command (`str`, *optional*):
            The command that usually follows. It is the last line.
    """
    if is_main_process():
        for line in lines:
            print(line)
        if next_command is not None:
            print(f"Next: {next_command}", flush=True)


def first_and_last(history: list[dict[str, float]], names: dict[str, str]) -> list[str]:
    """
    A table of logged metrics: the first value and the last. A metric that was logged once has no first value.

    Args:
        history (`list[dict[str, float]]`):
            `trainer.state.log_history`.
        names (`dict[str, str]`):
            Title of each metric in the table, by its name in the log. Metrics that were not logged are left out.
    """
    rows = []
    for key, name in names.items():
        values = [entry[key] for entry in history if entry.get(key) is not None]
        if values:
            rows.append((name, f"{values[0]:.3f}" if len(values) > 1 else "", values[-1]))
    width = max([36, *(len(name) for name, *_ in rows)])
    lines = [f"{name:<{width}}{first:>10}{last:>10.3f}" for name, first, last in rows]
    return [f"{'':<{width}}{'first':>10}{'last':>10}", *lines] if lines else []
