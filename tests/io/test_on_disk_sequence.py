"""Tests that a sequence on disk behaves like a list of its items."""

import pytest

from erprm_trl.io.on_disk_sequence import OnDiskSequence


class Squares(OnDiskSequence):
    def __init__(self, length):
        self.length, self.reads = length, []

    def __len__(self):
        return self.length

    def _read(self, index):
        self.reads.append(index)
        return index**2


SQUARES = [0, 1, 4, 9, 16]


@pytest.mark.parametrize("index", [0, 4, -1, -5, slice(None), slice(1, -1), slice(None, None, -2), slice(7, 9)])
def test_indices_and_slices_work_as_for_a_list(index):
    assert Squares(5)[index] == SQUARES[index]


@pytest.mark.parametrize("index", [5, -6])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError):
        Squares(5)[index]


def test_only_the_requested_items_are_read():
    squares = Squares(5)
    assert squares[3] == 9 and squares[-1] == 16 and squares.reads == [3, 4]


def test_iteration_equality_and_membership():
    assert list(Squares(5)) == SQUARES and Squares(5) == SQUARES and Squares(5) == Squares(5)
    assert Squares(5) != SQUARES[:4] and Squares(2) != [0, 2] and Squares(0) == [] and Squares(2) != {0, 1}
    assert 9 in Squares(5) and Squares(5).index(16) == 4
    with pytest.raises(TypeError, match="unhashable"):
        hash(Squares(5))
