"""Tests that given solutions are grouped by question, and that the fingerprint covers everything in them."""

import pytest

from erprm_trl.rollouts.given_solutions import GivenSolution
from erprm_trl.rollouts.solution_groups import SolutionGroups


def groups_of(*solutions, need_answers=False):
    return SolutionGroups(solutions, need_answers)


def test_solutions_are_grouped_in_the_order_of_their_questions():
    texts = [("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("a", "5"), ("b", "6")]
    groups = groups_of(*(GivenSolution(question, text) for question, text in texts))
    assert [[solution.text for solution in group] for group in groups] == [["1", "3", "6"], ["2", "5"], ["4"]]
    assert groups.sizes.tolist() == [3, 2, 1] and len(groups) == 3
    assert [solution.text for solution in groups[1]] == ["2", "5"]
    assert [[solution.text for solution in group] for group in groups[1:]] == [["2", "5"], ["4"]]


def test_a_question_with_two_reference_answers_is_two_questions(caplog):
    groups = groups_of(GivenSolution("q", "a", "1"), GivenSolution("q", "b", "2"), GivenSolution("q", "c", "1"))
    assert [[solution.text for solution in group] for group in groups] == [["a", "c"], ["b"]]
    assert "1 questions have several reference answers, e.g. solution 0" in caplog.text
    assert "answer '1') and solution 1" in caplog.text and "ids have" not in caplog.text


def test_an_id_with_two_questions_gives_a_warning(caplog):
    rows = [("q", 7), ("r", 8), ("q ", 7), ("s", None), ("t", None), ("r", 8)]
    groups = groups_of(*(GivenSolution(question, "a", id=identifier) for question, identifier in rows))
    assert groups.sizes.tolist() == [1, 2, 1, 1, 1]
    assert "1 ids have several questions, e.g. solution 0 (id 7, question 'q'" in caplog.text
    assert "several reference answers" not in caplog.text
    caplog.clear()
    # 7 and "7" are different ids, and a missing id is no id
    groups_of(GivenSolution("q", "a", id=7), GivenSolution("r", "a", id="7"), GivenSolution("s", "a"))
    assert not caplog.text


def test_the_fingerprint_covers_everything_that_is_stored():
    plain = GivenSolution("q", "a\nb", "1", ("a\n", "b"), True, 7, {"x": 1})
    changes = [
        {"question": "r"}, {"answer": None}, {"steps": ("a\nb",)}, {"steps": None}, {"correct": False}, {"id": "7"},
        {"metadata": {"x": 2}}, {"text": "c", "steps": None},
    ]  # fmt: skip
    prints = {groups_of(plain._replace(**change)).fingerprint for change in [{}, *changes]}
    assert len(prints) == 9 and groups_of(plain).fingerprint in prints
    other = plain._replace(text="c", steps=None)
    assert groups_of(plain, other).fingerprint != groups_of(other, plain).fingerprint


def test_errors_name_the_solution_and_the_remedy():
    with pytest.raises(ValueError, match="Solutions: got an empty sequence"):
        groups_of()
    with pytest.raises(ValueError, match="got 2 of 3 without a reference answer, the first is solution 1 .'r'"):
        groups_of(GivenSolution("q", "a", "1"), GivenSolution("r", "a"), GivenSolution("s", "a"), need_answers=True)
    with pytest.raises(ValueError, match=r"got steps at index 0 that are not the text .*text=''.join\(steps\)"):
        groups_of(GivenSolution("q", "ab", steps=("a\n", "b")))
    with pytest.raises(TypeError, match="got dict at index 0, expected GivenSolution"):
        groups_of({"question": "q"})
