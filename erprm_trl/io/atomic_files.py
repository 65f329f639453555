"""Folders and files for results. Folders are checked before the work starts, files have one writer, and they are
replaced atomically."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .paths import local_path


def make_folder(path: str | Path) -> Path:
    """
    Creates a folder for results. Call it before long work starts, so that an unusable folder is reported early.

    Args:
        path (`str` or `Path`):
            Path of the folder. Missing parent folders are created too.

    Returns:
        `Path`: the folder.

    Raises:
        `OSError`: if the folder cannot be created or written to.
    """
    path = Path(local_path(path))
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "No file can be written here. Choose another output_dir", str(path))
    return path


def replace_file(path: str | Path, text: str) -> None:
    """
    Replaces a file atomically. After an error or a crash, the file contains either the old text or the new text.

    Args:
        path (`str` or `Path`):
            Path of the file.
        text (`str`):
            New contents of the file.

    Raises:
        `OSError`: if the file cannot be written. The old file is unchanged.
    """
    path = Path(local_path(path))
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        message = f"{error.strerror}: the file was not changed. Make room or choose another folder"
        raise OSError(error.errno, message, str(path)) from error


@contextmanager
def only_writer(path: str | Path, doing: str) -> Iterator[None]:
    """
    Locks a file that this process writes, so that no other run writes to it.

    Args:
        path (`str` or `Path`):
            Path of the file. The lock is a hidden file next to it.
        doing (`str`):
            Work of the other run, for the error, e.g. `"collecting"`.

    Raises:
        `RuntimeError`: if another run has locked the file.
    """
    from filelock import FileLock, Timeout

    path = Path(local_path(path))
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"{path.parent}: another run is {doing} into this folder. Wait until it ends, stop it, or choose another "
            "output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
