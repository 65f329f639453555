"""Sequences whose items stay on disk: each is read when it is asked for. A subclass says how."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from operator import eq


class OnDiskSequence(Sequence):
    """
    Equal to any sequence of equal items; a slice is a list.

    A subclass has `__len__`, `_read(index)`, which reads the item at an index in range, and an `__iter__` where all
    are read faster one after the other.
    """

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator:
        return map(self._read, range(len(self)))

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None

    @abstractmethod
    def _read(self, index: int): ...
