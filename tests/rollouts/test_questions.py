"""Questions from every source, and what is said of bad rows."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from erprm_trl.rollouts import Question, load_questions
from erprm_trl.rollouts.questions import fingerprint


GSM8K_ROW = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
MATH_ROW = {"problem": "Find $x$.", "solution": r"So $x = \boxed{\frac{1}{2}}$.", "level": 2}
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_gsm8k_and_math_references_are_reduced_to_the_answer():
    assert load_questions([GSM8K_ROW]) == [Question("How many?", "1,072")]
    assert load_questions([MATH_ROW]) == [Question("Find $x$.", r"\frac{1}{2}")]
    assert load_questions([{"question": "q", "answer": " 18 "}]) == [Question("q", "18")]
    # MATH-500 has both: the short answer is preferred to the solution
    assert load_questions([{**MATH_ROW, "answer": "0.5"}])[0].answer == "0.5"


def test_files_folders_lists_datasets_and_functions_give_the_same(tmp_path):
    rows = [{"question": f"q{number}", "answer": str(number)} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "folder"))
    expected = [Question(f"q{number}", str(number)) for number in range(3)]
    for source in (
        rows,
        Dataset.from_list(rows),
        *(str(tmp_path / name) for name in ("rows.jsonl", "rows.parquet", "folder")),
    ):
        assert load_questions(source) == expected
    dial = load_questions("erprm_trl.dial:make_questions", dataset_kwargs={"num_questions": 4, "seed": 1})
    assert len(dial) == 4


def test_column_mapping_conversational_prompts_and_limit():
    rows = [{"q": [{"role": "user", "content": "hi"}], "a": "1"}, {"q": "ho", "a": "2"}]
    assert load_questions(rows, question_column="q", answer_column="a") == [Question("hi", "1"), Question("ho", "2")]
    assert len(load_questions(rows, question_column="q", answer_column="a", max_questions=1)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got no rows"),
        (
            [{"question": "q", "answer": "1"}, {"question": "r", "answer": None}],
            "Row 1 .*'answer' holds no reference answer",
        ),
        ([{"question": "q", "answer": "  "}], "Row 0 .*no reference answer.*answer_column"),
        ([{"question": "", "answer": "1"}], "Row 0: column 'question'.*question_column"),
        ([{"question": [{"role": "user", "content": "a"}] * 2, "answer": "1"}], "a list of one user message"),
        ([{"text": "q", "answer": "1"}], r"got \['answer', 'text'\].*`question_column`"),
    ],
)
def test_bad_rows_name_row_column_and_remedy(rows, message):
    with pytest.raises(ValueError, match=message):
        load_questions(rows)


def test_answers_may_be_absent_where_nobody_needs_them_but_not_in_part():
    assert load_questions([{"prompt": "q"}], require_answers=False) == [Question("q", None)]
    assert load_questions([{"prompt": "q", "answer": "1"}], require_answers=False) == [Question("q", "1")]
    with pytest.raises(ValueError, match="Row 1 .*no reference answer"):
        load_questions([{"prompt": "q", "answer": "1"}, {"prompt": "r", "answer": None}], require_answers=False)
    with pytest.raises(ValueError, match="expected 'gold'"):
        load_questions([{"prompt": "q"}], require_answers=False, answer_column="gold")


def test_missing_file_and_function():
    with pytest.raises(ValueError, match="no file at 'nowhere.jsonl'"):
        load_questions("nowhere.jsonl")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_questions("erprm_trl.dial:nothing_here")


def test_fingerprint_depends_on_order_and_content():
    a, b = Question("q", "1"), Question("r", "2")
    assert fingerprint([a, b]) == fingerprint([Question("q", "1"), Question("r", "2")])
    assert len({fingerprint(rows) for rows in ([a, b], [b, a], [a], [a, Question("r", "3")])}) == 4


@pytest.mark.skipif(not DATA.is_dir(), reason="the real questions are not here")
def test_real_questions():
    gsm8k = load_questions(str(DATA / "gsm8k_test.jsonl"))
    assert len(gsm8k) == 1319
    assert all(row.answer.lstrip("-$").replace(",", "").replace(".", "").isdigit() for row in gsm8k)
    assert len(load_questions(str(DATA / "math500.jsonl"))) == 500


def test_questions_of_a_table_stay_on_the_disk(tmp_path):
    from datasets import Dataset

    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": i, "notes": "x" * 50} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = load_questions(str(path), max_questions=10)
    assert isinstance(questions._rows, Dataset) and questions._rows.column_names == ["question", "answer"]
    assert questions[-1] == Question("What is 9?", "9") and questions[1:3] == list(questions)[1:3]
    assert len(questions) == 10 and questions == [Question(f"What is {i}?", str(i)) for i in range(10)]
    assert questions != questions[:9]
    with pytest.raises(IndexError):
        questions[10]
