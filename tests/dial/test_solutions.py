"""Tests solutions that a program wrote."""

import re
from collections import Counter

from erprm_trl.dial import make_solutions


OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def test_the_first_error_is_the_first_equation_that_does_not_hold():
    rows = make_solutions(200, seed=3)
    for row in rows:
        equations = [re.fullmatch(r"(\d+) (.) (\d+) = (\d+)", step).groups() for step in row["steps"][:-1]]
        wrong = [
            index for index, (a, sign, b, c) in enumerate(equations) if OPERATIONS[sign](int(a), int(b)) % 20 != int(c)
        ]
        assert row["first_error"] == (wrong[0] if wrong else -1)
        assert row["correct"] == (row["steps"][-1] == f"answer {row['answer']}")
        assert row["correct"] or wrong
    assert len({row["id"] for row in rows}) == len(rows) == 200
    sizes = Counter(Counter(row["question"] for row in rows).values())
    assert set(sizes) == {1, 2, 3}


def test_the_arguments_decide_the_solutions():
    assert make_solutions(20, seed=1) == make_solutions(20, seed=1) != make_solutions(20, seed=2)
    assert make_solutions(10, seed=1) == make_solutions(20, seed=1)[:10]
    assert all(row["first_error"] == 0 for row in make_solutions(20, seed=1, error_rate=1.0))
    assert len({row["question"] for row in make_solutions(20, seed=1, max_per_question=1)}) == 20
