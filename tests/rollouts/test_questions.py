"""Tests questions from all sources, and errors for bad rows."""

import hashlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from erprm_trl.rollouts import Question, load_questions
from erprm_trl.rollouts.questions import fingerprint


GSM8K_ROW = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
MATH_ROW = {"problem": "Find $x$.", "solution": r"So $x = \boxed{\frac{1}{2}}$.", "level": 2}
DATA = Path(__file__).parents[1] / "data"
PUBLIC_DATA = Path(os.environ.get("ERPRM_TEST_DATA", "nowhere"))


def test_gsm8k_and_math_references_are_reduced_to_the_answer():
    assert load_questions([GSM8K_ROW]) == [Question("How many?", "1,072")]
    assert load_questions([MATH_ROW]) == [Question("Find $x$.", r"\frac{1}{2}")]
    assert load_questions([{"question": "q", "answer": " 18 "}]) == [Question("q", "18")]
    # MATH-500 has both: the short answer is preferred to the solution
    assert load_questions([{**MATH_ROW, "answer": "0.5"}])[0].answer == "0.5"


def test_files_folders_lists_datasets_and_functions_give_the_same(tmp_path):
    rows = [{"question": f"q{index}", "answer": str(index)} for index in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "folder"))
    expected = [Question(f"q{index}", str(index)) for index in range(3)]
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
        (
            [{"question": "q", "answer": "1"}, ["q", "1"]],
            r"Row 1 of the given rows: got .* \(list\), expected a mapping",
        ),
        (["question"], "got 'question' as the first row of the given rows, expected a mapping"),
        ([None], "got 'None' as the first row"),
        ([{"question": "q", "answer": float("nan")}], "Row 0 .*no reference answer .*'nan', float"),
        ([{"question": "q", "answer": ["18"]}], r"Row 0 .*no reference answer .*list, expected a text or a number"),
        ([{"question": "half a pair \ud83d", "answer": "1"}], "Row 0: column 'question'.*Unicode text"),
        ([{"question": "q", "answer": "\udc00"}], "Row 0 .*no reference answer"),
        ([{3: "q", "b": "1"}], r"got \['3', 'b'\]"),
        ([{"text": "q", "answer": "1"}], r"got \['answer', 'text'\].*`question_column`"),
    ],
)
def test_errors_for_bad_rows_name_row_column_and_remedy(rows, message):
    with pytest.raises(ValueError, match=message):
        load_questions(rows)


def test_optional_answers_may_be_missing_in_all_rows_but_not_in_some():
    assert load_questions([{"prompt": "q"}], require_answers=False) == [Question("q", None)]
    assert load_questions([{"prompt": "q", "answer": "1"}], require_answers=False) == [Question("q", "1")]
    with pytest.raises(ValueError, match="Row 1 .*no reference answer"):
        load_questions([{"prompt": "q", "answer": "1"}, {"prompt": "r", "answer": None}], require_answers=False)
    with pytest.raises(ValueError, match="expected 'gold'"):
        load_questions([{"prompt": "q"}], require_answers=False, answer_column="gold")


def test_errors_for_a_missing_file_and_function():
    with pytest.raises(ValueError, match="no file at 'nowhere.jsonl'"):
        load_questions("nowhere.jsonl")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_questions("erprm_trl.dial:nothing_here")


ROW = '{"question": "q \u0301é", "answer": 18}'


@pytest.mark.parametrize(
    "text",
    [f"\ufeff{ROW}\n", f"{ROW}\r\n", f"\n\n{ROW}\n \n", f"[{ROW}]", f" [\n{ROW}\n]\n", f"{ROW}"],
    ids=ascii,
)
@pytest.mark.skipif(Version(version("datasets")) < Version("5.2"), reason="older versions refuse some of them")
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_in_the_forms_that_editors_write(text, suffix, tmp_path):
    (tmp_path / f"rows.{suffix}").write_text(text, encoding="utf-8", newline="")
    assert load_questions(str(tmp_path / f"rows.{suffix}")) == [Question("q \u0301é", "18")]


NESTED = b'{"question": "q", "answer": %s5%s}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "got no rows"),
        (b" \n\r\n", "got no rows"),
        (b"[]", "got no rows"),
        (ROW.encode() + b'\n\n{"question": "q"\n', "rows.jsonl, line 3: Expecting ',' delimiter"),
        (ROW.encode() + b"\nnull\n", "line 2: got a row that is not a JSON object"),  # `datasets` would crash here
        (b"[" + ROW.encode() + b", 5]", "rows.jsonl: got a row that is not a JSON object"),
        (b'"question"\n', "line 1: got a row that is not a JSON object"),
        (b'{"question": "caf\xe9", "answer": "1"}\n', "line 1: 'utf-8' codec can't decode.*in UTF-8"),
        (ROW.encode("utf-16"), "line 1: 'utf-8' codec"),
        # Python 3.13 reads this, and `datasets` would crash.
        (NESTED % (b"[" * 9_000, b"]" * 9_000), "line 1: (maximum recursion|got more than 60 levels)"),
        (NESTED % (b"[" * 60, b"]" * 60), "line 1: got more than 60 levels of lists and objects"),
        (NESTED % (b"[" * 59, b"]" * 59), "Row 0 .*column 'answer' holds no reference"),
        # `datasets` would read 1.2345678901234568e+29, which no completion equals.
        (
            b'{"question": "q", "answer": 123456789012345678901234567890}',
            "line 1: got the integer 123456.*write it in quotes",
        ),
        (b'{"question": "q", "answer": -9223372036854775809}', "more than 64 bits"),
        (b'{"question": "\\ud800", "answer": "1"}', "line 1: .*surrogates not allowed"),
        (b'{"question": "q", "question": "r", "answer": "1"}', "not a table .*specified twice"),
        (b'{"question": "q", "answer": NaN}', "Row 0 .*no reference answer"),
    ],
)
def test_errors_for_invalid_json_name_the_line(text, message, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_questions(str(tmp_path / "rows.jsonl"))


def test_the_largest_integers_of_a_table_are_exact(tmp_path):
    numbers = [2**63 - 1, -(2**63), 10**18]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "q", "answer": {number}}}\n' for number in numbers))
    assert [row.answer for row in load_questions(str(tmp_path / "rows.jsonl"))] == list(map(str, numbers))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | st.binary(max_size=2),
    lambda values: (
        st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(["content", "a"]), values, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(st.lists(st.fixed_dictionaries({"question": ANYTHING, "answer": ANYTHING}) | ANYTHING, max_size=3))
def test_any_rows_are_read_or_raise_an_error_that_names_the_row(rows):
    try:
        questions = load_questions(rows)
    except ValueError as error:
        assert re.search(r"Row \d|got no rows|first row of the given rows|Columns of the given rows", str(error))
    else:
        for (question, answer), row in zip(questions, rows, strict=True):
            asked = row["question"] if isinstance(row["question"], str) else row["question"][0]["content"]
            assert question == asked and question.strip() and question.encode()
            read = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
            read = read["content"] if isinstance(read, dict) else read
            assert isinstance(read, (str, int, float)) and answer.strip() and answer.encode()


def test_fingerprint_depends_on_order_and_content():
    a, b = Question("q", "1"), Question("r", "2")
    assert fingerprint([a, b]) == fingerprint([Question("q", "1"), Question("r", "2")])
    assert len({fingerprint(rows) for rows in ([a, b], [b, a], [a], [a, Question("r", "3")])}) == 4
    # what older releases wrote, so that their folders are recognised; a prompt is part of the work
    assert fingerprint([a]) == hashlib.sha256(b'["q", "1"]\n').hexdigest()[:16]
    assert fingerprint([a._replace(prompt="Think: q")]) != fingerprint([a])


def is_number(answer):
    return answer.lstrip("-$").replace(",", "").replace(".", "").isdigit()


def test_questions_in_the_format_of_public_datasets():
    gsm8k, math = (load_questions(str(DATA / name)) for name in ("gsm8k_form.jsonl", "math_form.jsonl"))
    assert len(gsm8k) == len(math) == 10
    assert all(is_number(row.answer) for row in gsm8k)
    assert [row.answer for row in gsm8k[2:6]] == ["1,072", "28", "-5", "19.50"]
    assert math[0] == Question("What is the sum of the roots of $6x^2 - 3x - 4 = 0$?", r"\frac{1}{2}")


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="ERPRM_TEST_DATA names no folder with the public sets")
def test_public_datasets():
    gsm8k = load_questions(str(PUBLIC_DATA / "gsm8k_test.jsonl"))
    assert len(gsm8k) == 1319 and all(is_number(row.answer) for row in gsm8k)
    assert len(load_questions(str(PUBLIC_DATA / "math500.jsonl"))) == 500


def test_questions_of_a_dataset_stay_on_disk(tmp_path):
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
