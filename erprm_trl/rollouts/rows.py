"""The rows of a folder of rollouts, read from its shards when they are asked for: in memory is only where each begins.
Which rows count, and what becomes of them, is `store`'s."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .lazy_sequence import LazySequence


class RolloutRows(LazySequence):
    """
    Rows of JSON lines. The files may grow meanwhile, as collections do; where rows begin must stay.

    Args:
        shards (`Sequence[Path]`):
            The files.
        places (`numpy.ndarray`):
            Of each row, the index of its file and the byte at which it begins, shape (rows, 2).
    """

    def __init__(self, shards: Sequence[Path], places: np.ndarray):
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            files = [stack.enter_context(open(shard, "rb")) for shard in self._shards]
            for shard, start in self._places:
                yield _row_at(files[shard], start)

    def _read(self, index: int) -> dict[str, Any]:
        shard, start = self._places[index]
        with open(self._shards[shard], "rb") as file:
            return _row_at(file, start)


def _row_at(file, start: int) -> dict[str, Any]:
    file.seek(start)
    return json.loads(file.readline())
