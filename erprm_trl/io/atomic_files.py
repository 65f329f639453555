"""Folders and files for results. Folders are checked before the work starts, and files are replaced atomically."""

import errno
import os
from contextlib import suppress
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
