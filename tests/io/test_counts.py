"""Counts in sentences, worked by hand."""

import pytest

from erprm_trl.io.counts import counted


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, "step"), "0 steps"),
        ((1, "step"), "1 step"),
        ((2, "step"), "2 steps"),
        ((1234567, "step"), "1,234,567 steps"),
        ((1, "prefix has", "prefixes have"), "1 prefix has"),
        ((3, "prefix has", "prefixes have"), "3 prefixes have"),
    ],
)
def test_counts_are_in_the_singular_or_plural(arguments, text):
    assert counted(*arguments) == text
