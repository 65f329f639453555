"""Finds the files that the library's stages have written in a folder and in the folders below it."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..io.paths import local_path
from ..io.redaction import redacted


logger = logging.getLogger(__name__)

DEPTH = 4  # enough for a RAFT round in the folder of the quickstart: policies/raft/round-0/samples


class RunFolder:
    """
    A folder, the folders down to four levels below it, and their JSON files. Hidden folders, checkpoints and symbolic
    links are skipped.

    Args:
        root (`str` or `Path`):
            The folder.

    Attributes:
        folders (`list[Path]`): All folders, outer ones first.
        notes (`list[str]`): Files that cannot be shown and why, for the page.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
    """

    def __init__(self, root: str | Path):
        self.root = Path(local_path(root))
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"The report's folder: got {self.root}, expected an existing folder of a run. Check the path."
            )
        self.folders = list(_folders(self.root))
        self.notes: list[str] = []
        self._contents: dict[Path, Any] = {}

    def name(self, path: Path) -> str:
        """The path of a folder relative to the root, or the name of the root itself."""
        relative = Path(os.path.relpath(path.resolve(), self.root.resolve()))
        return self.root.resolve().name if relative == Path() else relative.as_posix()

    def files(self, name: str) -> Iterator[tuple[Path, Any]]:
        """The folders with a JSON file of this name, and its content. Damaged files are noted."""
        for folder in self.folders:
            content = self.read(folder / name)
            if content is not None:
                yield folder, content

    def read(self, path: Path) -> Any:
        """The content of a JSON file, `None` if it is missing or damaged."""
        if path not in self._contents:
            self._contents[path] = self._parsed(path, json.loads)
        return self._contents[path]

    def lines(self, path: Path) -> list[Any] | None:
        """The rows of a file of JSON lines, `None` if it is missing or damaged."""
        return self._parsed(path, lambda content: [json.loads(line) for line in content.splitlines()])

    def note(self, path: Path, reason: str, error: Exception | None = None) -> None:
        """Records why a file is not shown: with its absolute path in the log, and without it on the page."""
        logger.warning("%s: %s%s", path, reason, "" if error is None else f" ({error})")
        self.notes.append(f"{self.name(path)}: {reason}.")

    def _parsed(self, path: Path, parse: Callable[[bytes], Any]) -> Any:
        try:
            return parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.note(path, "skipped, because the file is damaged", error)
            return None


def shown_names(names: list[str]) -> list[str]:
    """Names of reward models without secrets and absolute paths. Equal names get a number."""
    shown = [str(name) for name in redacted(list(names))]
    return [f"{name} ({index})" if shown.count(name) > 1 else name for index, name in enumerate(shown, start=1)]


def _folders(root: Path) -> Iterator[Path]:
    level = [root]
    for depth in range(DEPTH + 1):
        yield from level
        if depth < DEPTH:
            level = [child for folder in level for child in sorted(folder.iterdir()) if _is_entered(child)]


def _is_entered(path: Path) -> bool:
    hidden = path.name.startswith((".", "checkpoint-"))
    return not hidden and not path.is_symlink() and path.is_dir()
