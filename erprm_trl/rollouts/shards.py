"""The files of a collection: its manifest, its shards of JSON lines, and random access to their rows.

Each process appends to its own shard. A chunk (a group of consecutive questions) is written by one call, and is
complete if all its rows exist. After a crash, the incomplete chunk at the end of a shard is removed before the next
chunk is appended. Only the byte offsets of rows are kept in memory.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.atomic_files import replace_file
from ..io.on_disk_sequence import OnDiskSequence
from .records import RolloutRow


if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SHARD = "rollouts-{rank:05d}.jsonl"
RESTORE = (
    "Restore it (the same command with an empty folder writes the same manifest at its start), or choose another "
    "folder."
)


class RolloutRows(OnDiskSequence):
    """
    Random access to rows in files of JSON lines. The files may grow, as in a running collection, but existing rows
    must not move.

    Args:
        shards (`Sequence[Path]`):
            Paths of the files.
        places (`numpy.ndarray`):
            Index of the file, and byte offset in it, for each row, shape (rows, 2).
    """

    def __init__(self, shards: Sequence[Path], places: "np.ndarray"):
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[RolloutRow]:
        with ExitStack() as stack:
            files = [stack.enter_context(open(shard, "rb")) for shard in self._shards]
            for shard, start in self._places:
                yield _row_at(files[shard], start)

    def _read(self, index: int) -> RolloutRow:
        shard, start = self._places[index]
        with open(self._shards[shard], "rb") as file:
            return _row_at(file, start)


def _row_at(file, start: int) -> RolloutRow:
    file.seek(start)
    return RolloutRow.from_json(json.loads(file.readline()))


def shard_paths(path: Path) -> list[Path]:
    """The shards of a folder, in the order of their processes."""
    return sorted(path.glob("rollouts-*.jsonl"))


def read_chunks(shard: Path, num_chunks: float = math.inf) -> Iterator[tuple[int, list[RolloutRow], list[int]]]:
    """
    Yields the chunks of a shard. A last line without a newline is incomplete, and is not read.

    Args:
        shard (`Path`):
            Path of the shard.
        num_chunks (`float`, *optional*, defaults to infinity):
            Number of chunks of the collection.

    Yields:
        `tuple[int, list[RolloutRow], list[int]]`: the index of the chunk, its rows, and their byte offsets, followed
        by the byte offset of the end of the chunk.

    Raises:
        `ValueError`: for a complete line that is not a row of one of the chunks.
    """
    rows: list[RolloutRow] = []
    starts = [0]
    with open(shard, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = RolloutRow.from_json(json.loads(line))
                if not 0 <= row.chunk < num_chunks:
                    raise ValueError(f"chunk {row.chunk} of {num_chunks}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{shard}, line {line_number}: damaged ({error!r}), expected a row of rollouts. Cut the file off "
                    "before this line, or delete this line and the other lines of its chunk. The next run samples the "
                    "missing rows again."
                ) from error
            if rows and row.chunk != rows[-1].chunk:
                yield rows[-1].chunk, rows, starts
                rows, starts = [], starts[-1:]
            rows.append(row)
            starts.append(starts[-1] + len(line))
    if rows:
        yield rows[-1].chunk, rows, starts


def repair_shard(shard: Path, rows_in_chunk: list[int]) -> set[int]:
    """Removes an incomplete chunk at the end of a shard, and returns the indices of its complete chunks."""
    done: set[int] = set()
    end = 0
    unfinished = None
    for chunk, rows, starts in read_chunks(shard, len(rows_in_chunk)):
        if unfinished is not None:
            raise ValueError(
                f"{shard}: chunk {unfinished} is incomplete in the middle of the file, expected complete chunks. The "
                "file belongs to another run, or was edited. Move the file away. The next run samples its questions "
                "again."
            )
        if len(rows) == rows_in_chunk[chunk]:
            done.add(chunk)
            end = starts[-1]
        else:
            unfinished = chunk
    size = shard.stat().st_size
    if end < size:
        logger.warning("%s: removing %d bytes of an incomplete chunk.", shard, size - end)
        os.truncate(shard, end)
    return done


def append_rows(file, rows: list[RolloutRow]) -> None:
    """Appends the rows of a chunk with one write, and waits until they are on the disk."""
    # With ASCII escapes, model output with lone surrogates or line separators stays on one line and is read unchanged.
    lines = memoryview("".join(json.dumps(row.to_json()) + "\n" for row in rows).encode("ascii"))
    try:
        # The file's buffer is bypassed, because it would write again when it is closed after an error.
        while lines:
            lines = lines[os.write(file.fileno(), lines) :]
        os.fsync(file.fileno())
    except OSError as error:
        message = (
            f"{error.strerror}: a chunk could not be written. All chunks before it are safe. Make room, and run the "
            "same command again"
        )
        raise OSError(error.errno, message, file.name) from error


def read_manifest(path: Path, remedy: str = RESTORE) -> dict[str, Any] | None:
    """Reads the manifest of a folder. `None` if it does not exist. `remedy` is the last part of the error for a
    damaged manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest["config"]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST}: damaged ({error!r}). {remedy}") from error
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest atomically, so that after a crash it is either the old or the new manifest."""
    replace_file(path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
