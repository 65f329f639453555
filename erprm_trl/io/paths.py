"""Paths as people write them: a string or a `Path`, with `~` for the home directory. Every argument that takes a path
is read here."""

import os
from collections.abc import Iterable

from .text_lists import refuse_text


def local_path(path: str | os.PathLike) -> str:
    """
    Reads the name of a file or folder.

    Args:
        path (`str` or `os.PathLike`):
            A path, where `~` and `~user` stand for a home directory. The name of a model or dataset may be one: Hub
            ids and addresses of servers are returned as they are.

    Returns:
        `str`: The same path without `~`. A name whose user does not exist stays as it is.

    Example:

    ```python
    >>> local_path(Path("~/outputs"))
    '/home/ada/outputs'

    >>> local_path("Qwen/Qwen2.5-Math-PRM-7B")
    'Qwen/Qwen2.5-Math-PRM-7B'
    ```
    """
    return os.path.expanduser(os.fspath(path))


def local_paths(name: str, paths: Iterable[str | os.PathLike]) -> list[str]:
    """
    Reads the names of several files or folders, each as [`local_path`] does.

    Args:
        name (`str`):
            Name of the argument, for errors.
        paths (`Iterable[str | os.PathLike]`):
            Its value.

    Raises:
        `TypeError`: for a single string.
    """
    refuse_text(name, paths, "a list of folders, Hub ids or addresses")
    return [local_path(path) for path in paths]
