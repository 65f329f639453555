"""Tests the allocation of a budget of continuations, by hand and by properties that always hold."""

import itertools

import numpy as np
import pytest

from erprm_trl.rollouts.allocation import allocate


def ask(questions, budget, etas=(0.0,), tolerance=0.0):
    """Allocates a budget. A question is a list of prefixes (successes, failures, labels), and optionally the
    probabilities that continuations begin with longer prefixes."""
    rewards = [[[1.0] * s + [0.0] * f for s, f, _ in prefixes] for prefixes, *_ in questions]
    weights = [[weight for _, _, weight in prefixes] for prefixes, *_ in questions]
    reach = [np.array(more[0], dtype=float) if more else np.eye(len(prefixes)) for prefixes, *more in questions]
    return allocate(rewards, weights, reach, budget, target_etas=etas, tolerance=tolerance)


def variance_after(s, f, m):
    """At eta = 0 with the prior (1/2, 1/2): s + 1/2 successes of n = s + f + 1, expected after m more."""
    n = s + f + 1
    rate = (s + 0.5) / n
    return rate * (1 - rate) / (n + 1) * n / (n + m)


def test_the_allocation_at_eta_0_is_the_best_of_all_allocations():
    prefixes = [(2, 2, 1), (9, 0, 1), (1, 5, 2), (0, 1, 1)]
    for budget in (1, 4, 9):
        (counts,) = ask([[prefixes]], budget)
        assert sum(counts) == budget
        splits = [c for c in itertools.product(range(budget + 1), repeat=4) if sum(c) == budget]
        best = min(
            splits, key=lambda c: sum(w * variance_after(s, f, m) for (s, f, w), m in zip(prefixes, c, strict=True))
        )
        assert tuple(counts) == best


def test_certain_prefixes_get_no_continuations_and_the_remaining_budget_is_saved():
    certain, open_one = (400, 0, 1), (5, 5, 1)
    assert ask([[[certain, open_one]]], 6, tolerance=0.05) == [[0, 6]]
    # It gets as many as needed for a standard deviation below 0.05, independently of the budget.
    needed = next(m for m in itertools.count() if variance_after(5, 5, m) < 0.05**2)
    assert ask([[[certain, open_one]]], 500, tolerance=0.05) == [[0, needed]]
    assert ask([[[certain, certain]]], 500, tolerance=0.05) == [[0, 0]]
    assert ask([], 5) == [] and ask([[[]], [[(1, 1, 1)]]], 2) == [[], [2]]


def test_unknown_prefixes_come_first():
    assert ask([[[(3, 3, 9), (0, 0, 1)]], [[(0, 0, 1)]]], 2) == [[0, 1], [1]]


def test_eta_determines_which_prefixes_are_uncertain():
    even, never = (8, 8, 1), (0, 16, 1)
    assert ask([[[even, never]]], 1, etas=(0.0,)) == [[1, 0]]
    assert ask([[[even, never]]], 1, etas=(10.0,)) == [[0, 1]]
    assert ask([[[even, never]]], 1, etas=(0.0, 10.0)) == [[0, 1]]  # the largest change over the etas counts
    # The second prefix changes much more at eta = 0, the first prefix changes a little more at eta = 10.
    assert ask([[[(1, 7, 1), (2, 2, 1)]]], 1, etas=(0.0, 10.0)) == [[0, 1]]


def test_continuations_that_count_for_other_prefixes_are_preferred():
    short_and_long = [(3, 3, 1), (3, 3, 1)]
    assert ask([[short_and_long, [[1, 0.9], [0, 1]]]], 4) == [[4, 0]]
    assert ask([[short_and_long, [[1, 0], [0.9, 1]]]], 1) == [[0, 1]]  # already with the first one
    # If no continuation counts for the longer prefix, both prefixes have the same gain.
    assert ask([[short_and_long, [[1, 0], [0, 1]]]], 4) == [[2, 2]]
    # With one more label, the gain of the longer prefix is larger than both together if few continuations begin with
    # it.
    assert ask([[[(3, 3, 1), (3, 3, 2)], [[1, 0.1], [0, 1]]]], 1) == [[0, 1]]


def random_questions(seed):
    rng = np.random.default_rng(seed)
    questions = []
    for _ in range(4):
        size = int(rng.integers(1, 5))
        prefixes = [tuple(map(int, (*rng.integers(0, 9, 2), rng.integers(1, 3)))) for _ in range(size)]
        questions.append([prefixes, np.triu(rng.uniform(0.1, 0.9, (size, size)), 1) + np.eye(size)])
    return questions


@pytest.mark.parametrize("seed", range(6))
def test_the_budget_and_the_order_of_questions(seed):
    questions = random_questions(seed)
    settings = {"etas": (0.0, 2.0, 10.0), "tolerance": 0.03}
    counts = ask(questions, 37, **settings)
    assert sum(map(sum, counts)) <= 37
    assert ask(questions, 37, **settings) == counts
    rng = np.random.default_rng(seed)
    order = rng.permutation(4)
    shuffled, expected = [], []
    for index in order:
        prefixes, reach = questions[index]
        within = rng.permutation(len(prefixes))
        shuffled.append([[prefixes[i] for i in within], reach[np.ix_(within, within)]])
        expected.append([counts[index][i] for i in within])
    assert ask(shuffled, 37, **settings) == expected
