"""A base class for sequences whose items stay on disk and are read on access."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from operator import eq


class OnDiskSequence(Sequence):
    """
    A sequence that reads its items from disk on access. A slice is a list. The sequence is equal to any other sequence
    with equal items.

    A subclass defines `__len__` and `_read(index)`, which reads the item at a valid index. It overrides `__iter__` if
    it can read all items faster in order.
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
