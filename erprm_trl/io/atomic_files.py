"""Folders and files of results, for every stage: a folder is tried before the work, a file is there whole or as it
was."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from .paths import local_path


def make_folder(path: str | Path) -> Path:
    """
    Makes a folder for results, before work is done that would have no place.

    Raises:
        `OSError`: if it cannot be made or written to.
    """
    path = Path(local_path(path))
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "No file can be written here. Choose another output_dir", str(path))
    return path


def replace_file(path: str | Path, text: str) -> None:
    """Writes a file in one move: whatever happens, it holds the old text or the new one, whole."""
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
        what = f"{error.strerror}: not written, and as it was before. Make room or choose another folder"
        raise OSError(error.errno, what, str(path)) from error
