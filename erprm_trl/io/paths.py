"""Paths as people write them: a string or a `Path`, with `~` for the home directory. Every argument that takes a path
is read here."""

import os


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
