"""Finds what the library's stages have written in a folder and below it. What is shown of it is decided elsewhere."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..io.paths import local_path
from ..io.redaction import redacted


logger = logging.getLogger(__name__)

DEPTH = 4  # a round of RAFT in the quickstart's folder: policies/raft/round-0/samples


class RunFolder:
    """
    A folder, its folders down to four levels below it, and the JSON files in them. Hidden folders, checkpoints and
    links are not entered.

    Args:
        root (`str` or `Path`):
            The folder.

    Attributes:
        folders (`list[Path]`): all of them, the outer ones first.
        notes (`list[str]`): what was found and cannot be shown, for the page.

    Raises:
        `FileNotFoundError`: if it is no folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(local_path(root))
        if not self.root.is_dir():
            raise FileNotFoundError(f"Report: got {self.root}, expected a run's folder. Check the path.")
        self.folders = list(_folders(self.root))
        self.notes: list[str] = []
        self._held: dict[Path, Any] = {}

    def name(self, path: Path) -> str:
        """A folder as the page names it: relative to the root, which has its own name."""
        relative = Path(os.path.relpath(path.resolve(), self.root.resolve()))
        return self.root.resolve().name if relative == Path() else relative.as_posix()

    def files(self, name: str) -> Iterator[tuple[Path, Any]]:
        """The folders that have a JSON file of this name, and what it holds. Damaged files are noted."""
        for folder in self.folders:
            content = self.read(folder / name)
            if content is not None:
                yield folder, content

    def read(self, path: Path) -> Any:
        """What a JSON file holds, `None` where it is missing or damaged."""
        if path not in self._held:
            self._held[path] = self._parsed(path, json.loads)
        return self._held[path]

    def lines(self, path: Path) -> list[Any] | None:
        """Likewise of a file of JSON lines."""
        return self._parsed(path, lambda content: [json.loads(line) for line in content.splitlines()])

    def note(self, path: Path, what: str, error: Exception | None = None) -> None:
        """Says on the page, without absolute paths, and in the log, with them, why something is not shown."""
        logger.warning("%s: %s%s", path, what, "" if error is None else f" ({error})")
        self.notes.append(f"{self.name(path)}: {what}.")

    def _parsed(self, path: Path, parse: Callable[[bytes], Any]) -> Any:
        try:
            return parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.note(path, "damaged, left out", error)
            return None


def shown_names(names: list[str]) -> list[str]:
    """Names of reward models without secrets and absolute paths, still told apart."""
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
