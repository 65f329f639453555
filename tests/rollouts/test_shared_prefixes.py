"""Tests for which prefixes a text counts, by hand, and by enumerating a policy with known probabilities, which shows
that there is no bias."""

import itertools

import numpy as np
import pytest
import tabular_policy

from erprm_trl.rollouts.shared_prefixes import SharedPrefixes


def shared(*texts, reuse=True):
    prefixes = SharedPrefixes(reuse)
    for text in texts:
        prefixes.add_prefix(text)
    return prefixes


def test_counts_worked_by_hand():
    prefixes = shared("a\n", "a\nb\n", "c\n")
    assert prefixes.add_prefix("a\n") == 0 and prefixes.weights == [2, 1, 1]
    prefixes.add_text("a\nb\nend", 1.0)  # a solution counts for its own prefixes
    prefixes.add_text("a\nb\nother", 0.0, start=0)  # sampled from `a`, and begins with `a b`
    prefixes.add_text("a\nd\nend", 0.5, start=0)
    prefixes.add_text("a\nb\nend", 0.25, start=1)  # does not count for `a`, because it was sampled from `a b`
    assert prefixes.generated == [[0.0, 0.5], [0.25], []]
    assert prefixes.inherited == [[1.0], [1.0, 0.0], []]
    assert prefixes.rewards == [[0.0, 0.5, 1.0], [0.25, 1.0, 0.0], []]
    # 2 of the 3 texts from `a` begin with `a b`: (2 + 1/2) / (3 + 1).
    assert prefixes.reach() == pytest.approx(np.array([[1, 0.625, 0], [0, 1, 0], [0, 0, 1]]))


def test_without_reuse_a_text_counts_only_for_the_prefix_it_was_sampled_from():
    prefixes = shared("a\n", "a\nb\n", reuse=False)
    prefixes.add_text("a\nb\nend", 1.0)
    prefixes.add_text("a\nb\nend", 0.0, start=0)
    assert (prefixes.generated, prefixes.inherited) == ([[0.0], []], [[], []])
    assert prefixes.reach().tolist() == [[1, 0], [0, 1]]


def test_a_text_equal_to_the_prefix_counts_and_a_text_with_more_line_breaks_does_not():
    prefixes = shared("", "a\n", "a ки", "a\n\n")
    prefixes.add_text("a\n", 0.1)
    prefixes.add_text("a\n\nb", 0.2)
    prefixes.add_text("a ки b", 0.3)
    prefixes.add_text("a киb", 0.4)
    assert prefixes.inherited == [[0.1, 0.2, 0.3, 0.4], [0.1], [0.3, 0.4], [0.2]]


def test_reuse_is_unbiased_by_enumeration():
    """Enumerates all combinations of a solution that begins with `a c`, two continuations of `a`, and one of `a c`."""
    a, ac = ("a\n",), ("a\n", "c\n")
    expected = {prefix: sum(p * tabular_policy.reward(whole) for whole, p in tabular_policy.solutions(prefix))
                for prefix in (a, ac)}  # fmt: skip
    from_a, from_ac = list(tabular_policy.solutions(a)), list(tabular_policy.solutions(ac))
    mean, total = 0.0, 0.0
    counted = set()
    for (own, p0), (first, p1), (second, p2), (third, p3) in itertools.product(from_ac, from_a, from_a, from_ac):
        prefixes = shared("".join(a), "".join(ac))
        prefixes.add_text("".join(own), tabular_policy.reward(own))
        for whole, start in ((first, 0), (second, 0), (third, 1)):
            prefixes.add_text("".join(whole), tabular_policy.reward(whole), start=start)
        chance = p0 * p1 * p2 * p3
        rewards = prefixes.rewards[1]
        counted.add(len(rewards))
        mean += chance * sum(rewards) / len(rewards)
        total += chance
        assert prefixes.generated[0] == [tabular_policy.reward(first), tabular_policy.reward(second)]
    assert total == pytest.approx(1.0) and counted == {2, 3, 4}  # its own and the solution, and 0 to 2 from `a`
    assert mean == pytest.approx(expected[ac], rel=1e-12)
    assert abs(expected[a] - expected[ac]) > 0.05  # so that counting the wrong ones would show
