"""Reads paths as users write them: a string or a `Path`, with `~` for the home directory. Every argument that takes a
path goes through these functions."""

import os
from collections.abc import Iterable
from pathlib import Path

from .text_lists import refuse_text


PACKAGE = Path(__file__).parents[1]


def local_path(path: str | os.PathLike) -> str:
    """
    Replaces `~` and `~user` at the start of a path by the home directory.

    Args:
        path (`str` or `os.PathLike`):
            Path of a file or folder. Hub ids and addresses of servers are accepted too, and returned unchanged.

    Returns:
        `str`: the path with the home directory filled in. If the user does not exist, the path is returned unchanged.

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
    Applies [`local_path`] to several paths.

    Args:
        name (`str`):
            Name of the argument, for errors.
        paths (`Iterable[str | os.PathLike]`):
            Value of the argument: paths of files or folders, Hub ids, or addresses of servers.

    Returns:
        `list[str]`: the paths with the home directory filled in.

    Raises:
        `TypeError`: if `paths` is a single string.
    """
    refuse_text(name, paths, "a list of folders, Hub ids or addresses")
    return [local_path(path) for path in paths]


def path_in_package(path: str | os.PathLike) -> str:
    """
    Finds a file of the installed package by its path in the repository.

    Args:
        path (`str`):
            A value of a configuration file.

    Returns:
        `str`: for a path such as `"erprm_trl/dial/base"` that does not exist in the working directory, the path in the
        installed package. Other values are returned unchanged.
    """
    path = os.fspath(path)
    if path.startswith(f"{PACKAGE.name}/") and not Path(path).exists():
        installed = PACKAGE.parent / path
        return str(installed) if installed.exists() else path
    return path
