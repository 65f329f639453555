"""Tests solutions from all sources and in all forms of rows, and errors for bad rows."""

import json

import pytest
from datasets import Dataset

from erprm_trl.rollouts import GivenSolution, load_solutions


ROW = {"question": "2 + 3?", "answer": "So\n#### 5", "response": "2 + 3 = 5\nanswer 5"}


def test_a_row_with_a_text():
    row = {**ROW, "id": 7, "correct": True, "model": "other", "rank": [1, 2]}
    (solution,) = load_solutions([row])
    metadata = {"model": "other", "rank": [1, 2]}
    assert solution == GivenSolution("2 + 3?", "2 + 3 = 5\nanswer 5", "5", None, True, 7, metadata)
    # only a question and a solution are needed
    assert load_solutions([{"problem": "q", "generation": ""}]) == [GivenSolution("q", "")]


def test_files_lists_and_datasets_give_the_same(tmp_path):
    rows = [{**ROW, "id": f"a{index}", "note": {"x": index}} for index in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    expected = load_solutions(rows)
    assert [solution.id for solution in expected] == ["a0", "a1", "a2"] and expected[2].metadata == {"note": {"x": 2}}
    for source in (Dataset.from_list(rows), *(str(tmp_path / f"rows.{kind}") for kind in ("jsonl", "parquet"))):
        assert load_solutions(source) == expected
    assert load_solutions(rows, max_rows=2) == expected[:2]


def test_columns_that_are_missing_or_empty_in_the_first_row_are_read():
    rows = [ROW, {**ROW, "correct": None, "source": "b"}, {**ROW, "correct": 1, "id": 5, "source": "c"}]
    solutions = load_solutions(rows)
    assert [solution.correct for solution in solutions] == [None, None, True]
    assert [solution.id for solution in solutions] == [None, None, 5]
    assert [solution.metadata for solution in solutions] == [None, {"source": "b"}, {"source": "c"}]
    table = Dataset.from_list([{**ROW, "correct": correct} for correct in (None, True, False)])
    assert [solution.correct for solution in load_solutions(table)] == [None, True, False]


def test_steps_keep_their_boundaries():
    def steps_of(steps, **options):
        (solution,) = load_solutions([{"question": "q", "steps": steps}], **options)
        assert solution.text == "".join(solution.steps)
        return list(solution.steps)

    assert steps_of(["a\n", "b\n\n", "c"]) == ["a\n", "b\n\n", "c"]
    # The delimiter is added where two steps would run into each other.
    assert steps_of(["a", "b", "c"]) == ["a\n", "b\n", "c"]
    assert steps_of(["a. ", "b.", " c"]) == ["a. ", "b.", " c"]
    assert steps_of(["a", "b ки ", "c"], step_delimiter=" ки ") == ["a ки ", "b ки ", "c"]
    assert steps_of(["a\nb", "c"]) == ["a\nb\n", "c"]  # a line break within a step is no boundary
    assert steps_of(["a", "", "c"]) == ["a\n", "\n", "c"]
    assert steps_of([]) == []


def test_a_row_with_several_solutions():
    row = {"problem": "q", "answer": 5, "completions": ["a", "b"], "is_correct": [1, 0], "level": 3}
    row["scores"] = [0.2, 3]
    assert load_solutions([row, {**row, "scores": [1, 2]}])[:2] == [
        GivenSolution("q", "a", "5", None, True, None, {"level": 3, "scores": 0.2}),
        GivenSolution("q", "b", "5", None, False, None, {"level": 3, "scores": 3}),
    ]
    # A column is divided only if it has one value per solution in every row.
    texts = load_solutions([row, {**row, "completions": ["c", "d", "e"], "is_correct": [True, False, True]}])
    assert [solution.metadata["scores"] for solution in texts] == [[0.2, 3]] * 5
    assert [solution.text for solution in texts] == list("abcde") == [texts[index].text for index in (0, 1, 2, 3, 4)]
    assert [texts[index].text for index in (4, 0, 3, -1)] == ["e", "a", "d", "e"]
    steps = load_solutions([{"question": "q", "steps": [["a", "b"], ["c"]]}])
    assert [solution.steps for solution in steps] == [("a\n", "b"), ("c",)]


def test_conversations_and_the_stepwise_form_of_trl():
    ask, reply = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    assert load_solutions([{"prompt": ask, "completion": reply}]) == [GivenSolution("q", "a")]
    assert load_solutions([{"prompt": ask, "completions": [reply, reply]}]) == [GivenSolution("q", "a")] * 2
    stepwise = [{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}]
    assert load_solutions(stepwise) == [
        GivenSolution("q", "a\nb", None, ("a\n", "b"), None, None, {"labels": [True, False]})
    ]


def test_which_columns_are_read():
    both = {"problem": "q", "solution": r"So \boxed{5}.", "completion": "a"}
    assert load_solutions([both]) == [GivenSolution("q", "a", "5")]  # the solution is the reference
    assert load_solutions([both], solution_column="solution")[0].text == r"So \boxed{5}."
    only = {"problem": "q", "solution": r"So \boxed{5}.", "answer": "5"}
    assert load_solutions([only]) == [GivenSolution("q", r"So \boxed{5}.", "5")]
    gsm8k = [{"question": "q", "answer": "2 + 3 = 5\n#### 5"}]
    assert load_solutions(gsm8k, solution_column="answer", answer_column="answer") == [
        GivenSolution("q", "2 + 3 = 5\n#### 5", "5")
    ]
    # The letter of a correct choice does not say whether the solution is correct.
    assert load_solutions([{**ROW, "correct": "B"}])[0][4:] == (None, None, {"correct": "B"})
    kept = load_solutions([{**ROW, "id": 1, "a": 1, "b": 2}], metadata_columns=["b"])
    assert kept[0].metadata == {"b": 2} and kept[0].id == 1


def test_correctness_is_read_from_the_forms_of_all_sources():
    values = [True, 0, 1.0, "False", "1", None]
    rows = [{**ROW, "correct": value} for value in values]
    assert [solution.correct for solution in load_solutions(rows)] == [True, False, True, False, True, None]


def test_lone_surrogates_are_replaced():
    (solution,) = load_solutions([{"question": "q", "response": "half \ud83d"}])
    assert solution.text == "half \ufffd"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "Solutions: got no rows"),
        ([{"question": "q"}], {}, "expected 'response' or .*`solution_column`"),
        ([ROW, {"question": "q"}], {}, "Row 1 of the given rows: column 'response' holds no solution .*Drop the row"),
        ([ROW, ["q"]], {}, r"Row 1 of the given rows: got .* \(list\), expected a mapping"),
        ([{"question": "q", "responses": []}], {}, "Row 0 .*holds no solution"),
        ([{"question": "q", "responses": ["a", None]}], {}, "Row 0 .*holds no solution"),
        ([{"question": "q", "steps": "a\nb"}], {}, "Row 0 .*'steps' holds no steps .*`solution_column` for a text"),
        ([{"question": "q", "steps": [["a"], "b"]}], {}, "Row 0 .*holds no steps"),
        ([{"question": " ", "response": "a"}], {}, "Row 0: column 'question' got"),
        ([{**ROW, "answer": ["5"]}], {}, "Row 0 .*'answer' holds no reference answer .*list"),
        ([{**ROW, "correct": 1}, {**ROW, "correct": 0.5}], {}, "Row 1 .*'correct' got '0.5'.*true, false, 1 or 0"),
        (
            [{"question": "q", "responses": ["a", "b"], "correct": [True]}],
            {},
            "Row 0 .*'correct' got .*expected a list of 2 values",
        ),
        ([{**ROW, "image": b"png"}], {}, "Row 0 .*'image' got .*expected a JSON value.*`metadata_columns`"),
        ([ROW], {"metadata_columns": ["level"]}, "expected 'level'. Name the right one with `metadata_columns`"),
        ([ROW], {"correct_column": "right"}, "expected 'right'.*`correct_column`"),
        ([ROW], {"solution_column": "a", "steps_column": "b"}, "got solution_column='a' and steps_column='b'"),
    ],
)
def test_errors_for_bad_rows_name_row_column_and_remedy(rows, options, message):
    with pytest.raises(ValueError, match=message):
        load_solutions(rows, **options)


@pytest.mark.parametrize("values", [("no", "yes"), (-1, 1), (0.2, 0.9)])
def test_a_correctness_that_cannot_be_read_is_a_warning(values, caplog):
    rows = [{"question": "1+2?", "answer": "3", "response": str(n), "correct": values[n]} for n in range(2)]
    assert [solution.correct for solution in load_solutions(rows)] == [None, None]
    assert "column 'correct' is not read as the correctness of the solutions" in caplog.text
    assert f"its first value is {values[0]!r}" in caplog.text
