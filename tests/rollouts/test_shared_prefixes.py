"""Which prefixes a text counts for: by hand, and without bias by enumeration of a policy with known probabilities."""

import itertools

import numpy as np
import pytest
import tabular_policy

from erprm_trl.rollouts.shared_prefixes import SharedPrefixes


def shared(*prefixes, reuse=True):
    one = SharedPrefixes(reuse)
    for prefix in prefixes:
        one.add_prefix(prefix)
    return one


def test_by_hand():
    one = shared("a\n", "a\nb\n", "c\n")
    assert one.add_prefix("a\n") == 0 and one.weights == [2, 1, 1]
    one.add_text("a\nb\nend", 1.0)  # a solution: counts for its prefixes, which cost nothing
    one.add_text("a\nb\nother", 0.0, start=0)  # sampled from a, passes through a b
    one.add_text("a\nd\nend", 0.5, start=0)
    one.add_text("a\nb\nend", 0.25, start=1)  # says nothing of a: it was made to go through b
    assert one.generated == [[0.0, 0.5], [0.25], []]
    assert one.inherited == [[1.0], [1.0, 0.0], []]
    assert one.rewards == [[0.0, 0.5, 1.0], [0.25, 1.0, 0.0], []]
    # Of 3 from a, 2 went through a b: (2 + 1/2) / (3 + 1).
    assert one.reach() == pytest.approx(np.array([[1, 0.625, 0], [0, 1, 0], [0, 0, 1]]))


def test_without_reuse_a_text_counts_where_it_was_sampled():
    one = shared("a\n", "a\nb\n", reuse=False)
    one.add_text("a\nb\nend", 1.0)
    one.add_text("a\nb\nend", 0.0, start=0)
    assert (one.generated, one.inherited) == ([[0.0], []], [[], []])
    assert one.reach().tolist() == [[1, 0], [0, 1]]


def test_a_text_that_is_the_prefix_passes_and_more_line_breaks_do_not():
    one = shared("", "a\n", "a ки", "a\n\n")
    one.add_text("a\n", 0.1)
    one.add_text("a\n\nb", 0.2)
    one.add_text("a ки b", 0.3)
    one.add_text("a киb", 0.4)
    assert one.inherited == [[0.1, 0.2, 0.3, 0.4], [0.1], [0.3, 0.4], [0.2]]


def test_reuse_is_unbiased_by_enumeration():
    """Every course of: a solution that passes through `a c`, two continuations of `a`, one of `a c`."""
    a, ac = ("a\n",), ("a\n", "c\n")
    expected = {prefix: sum(p * tabular_policy.reward(whole) for whole, p in tabular_policy.solutions(prefix))
                for prefix in (a, ac)}  # fmt: skip
    from_a, from_ac = list(tabular_policy.solutions(a)), list(tabular_policy.solutions(ac))
    mean, total = 0.0, 0.0
    counted = set()
    for (own, p0), (one, p1), (two, p2), (three, p3) in itertools.product(from_ac, from_a, from_a, from_ac):
        prefixes = shared("".join(a), "".join(ac))
        prefixes.add_text("".join(own), tabular_policy.reward(own))
        for whole, start in ((one, 0), (two, 0), (three, 1)):
            prefixes.add_text("".join(whole), tabular_policy.reward(whole), start=start)
        chance = p0 * p1 * p2 * p3
        rewards = prefixes.rewards[1]
        counted.add(len(rewards))
        mean += chance * sum(rewards) / len(rewards)
        total += chance
        assert prefixes.generated[0] == [tabular_policy.reward(one), tabular_policy.reward(two)]
    assert total == pytest.approx(1.0) and counted == {2, 3, 4}  # its own and the solution, and 0 to 2 from `a`
    assert mean == pytest.approx(expected[ac], rel=1e-12)
    assert abs(expected[a] - expected[ac]) > 0.05  # so that counting the wrong ones would show
