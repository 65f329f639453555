"""Candidates made elsewhere: rows in the published forms, gradings, and damaged rows."""

import json

import pytest

from erprm_trl.rollouts import collect_rollouts
from erprm_trl.selection import collect_candidates


QUESTION = "What is 3 + 4?"
RIGHT, WRONG = "3 + 4 = 7\nThe answer is $\\boxed{7}$.", "3 + 4 = 8\nThe answer is $\\boxed{8}$."


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def collected(tmp_path, *rows, **options):
    return collect_candidates(list(rows), tmp_path / "candidates", show_progress=False, **options)


def judgements(samples):
    """Reward and final answer of each solution of each question."""
    return [[(row.outcome_reward, row.prediction) for row in rows] for rows in samples.solutions()]


def test_rlhflows_test_sets(tmp_path):
    rows = [
        {"prompt": QUESTION, "answers": [RIGHT, WRONG, "No idea."], "label": [1, 0, 0]},
        {"prompt": "What is 1 + 1?", "answers": ["It is $\\boxed{2}$."], "label": [1]},
    ]
    samples = collected(tmp_path, *rows)
    assert [[row.question for row in group] for group in samples.solutions()] == [[QUESTION] * 3, ["What is 1 + 1?"]]
    assert judgements(samples) == [[(1.0, "7"), (0.0, "8"), (0.0, None)], [(1.0, "2")]]
    assert samples.settings.grading == "stated" and samples.settings.num_continuations == 0
    assert samples[0].steps == ["3 + 4 = 7\n", "The answer is $\\boxed{7}$."]
    assert samples[0].answer is None


def test_rlhflows_solutions_with_marks_are_cut_at_the_marks(tmp_path):
    marked = "Step 1: 3 + 4\nis 7. ки\nStep 2: The answer is: 7 ки\n"
    samples = collected(tmp_path, {"prompt": QUESTION, "answers": [marked, RIGHT], "labels": [1, 1]})
    assert samples[0].steps == ["Step 1: 3 + 4\nis 7.\n", "Step 2: The answer is: 7"]
    assert samples[1].steps == ["3 + 4 = 7\n", "The answer is $\\boxed{7}$."]


def test_russian_words_are_not_cut_at_a_mark(tmp_path):
    russian = "Ошибки нет.\nОтвет: 7, проверки не нужно."
    marked = "Складываем. ки\nОтвет: 7 ки"
    samples = collected(tmp_path, {"prompt": QUESTION, "answers": [russian, marked], "label": [1, 1]})
    assert samples[0].steps == ["Ошибки нет.\n", "Ответ: 7, проверки не нужно."]
    assert samples[1].steps == ["Складываем.\n", "Ответ: 7"]


def search_and_learn(**values):
    """A row of search-and-learn's best-of-n completions of MATH-500."""
    return {
        "problem": QUESTION,
        "solution": "We add. $3 + 4 = \\boxed{7}$.",
        "answer": "7",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/1.json",
        "completions": [RIGHT, WRONG],
        "scores": [[0.9, 0.8], [0.9, 0.1]],
        "pred": RIGHT,
        "completion_tokens": [20, 21],
        "agg_scores": [0.8, 0.1],
        "pred_naive@2": "\\boxed{7}",
        **values,
    }


def test_search_and_learns_completions_are_graded_against_the_answer(tmp_path):
    samples = collected(tmp_path, search_and_learn(), splitter="blank_line")
    assert samples.settings.grading == "math" and samples.settings.splitter == "blank_line"
    assert judgements(samples) == [[(1.0, "7"), (0.0, "8")]]
    assert samples[0].steps == [RIGHT] and samples[0].answer == "7"


def test_one_solution_per_row_and_names_of_columns(tmp_path):
    rows = [{"q": QUESTION, "text": text, "ok": ok} for text, ok in ((RIGHT, False), (WRONG, True), (WRONG, False))]
    columns = {"question_column": "q", "solution_column": "text", "correct_column": "ok"}
    samples = collected(tmp_path, *rows, **columns)
    # The source is believed, although the second solution looks wrong.
    assert judgements(samples) == [[(0.0, "7"), (1.0, "8"), (0.0, "8")]]


def test_a_grading_that_is_chosen_is_used_instead_of_the_stated_correctness(tmp_path):
    row = {"question": QUESTION, "answer": "7", "responses": [RIGHT, WRONG], "correct": [False, True]}
    samples = collected(tmp_path, row, grading="math")
    assert [[reward for reward, _ in rows] for rows in judgements(samples)] == [[1.0, 0.0]]
    assert [row.correct for row in samples] == [False, True]


def test_the_same_call_continues_and_another_source_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", search_and_learn())
    first = collect_candidates(path, tmp_path / "candidates", show_progress=False)
    again = collect_candidates(path, tmp_path / "candidates", show_progress=False)
    assert judgements(again) == judgements(first)
    write(path, search_and_learn(completions=[WRONG, WRONG]))
    with pytest.raises(ValueError, match="questions was"):
        collect_candidates(path, tmp_path / "candidates", show_progress=False)


def test_a_source_is_read_once_and_named_in_errors(tmp_path, monkeypatch):
    module = """calls = []

def rows(answer):
    calls.append(answer)
    return [{"question": "What is 3 + 4?", "response": "It is 7.", "answer": answer}]
"""
    (tmp_path / "made_elsewhere.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"show_progress": False, "dataset_kwargs": {"answer": "7"}}
    samples = collect_candidates("made_elsewhere:rows", tmp_path / "candidates", **options)
    import made_elsewhere

    assert made_elsewhere.calls == ["7"] and judgements(samples) == [[(1.0, "7")]]
    with pytest.raises(ValueError, match="Solution 0 of made_elsewhere:rows"):
        collect_candidates("made_elsewhere:rows", tmp_path / "others", dataset_kwargs={"answer": None})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "a", "response": "b"}],
            "Solution 0 of the given rows .'a'.: got no answer, expected a reference answer",
        ),
        (
            [{"question": "a", "response": "b", "correct": True}, {"question": "c", "response": "d", "correct": None}],
            "Solution 1 of the given rows .'c'.: got no answer.*`answer_column` or `correct_column`",
        ),
        ([{"prompt": "a", "answers": ["b", "c"], "label": [1]}], "Row 0 of .*'label'.*a list of 2 values"),
        ([{"prompt": "a", "answers": [], "label": []}], "Row 0 of .*'answers' holds no solution"),
        ([{"prompt": "a", "answers": ["b"], "label": ["yes"]}], "Row 0 of .*'label'"),
        ([{"prompt": "", "answers": ["b"], "label": [1]}], "Row 0: column 'prompt'"),
    ],
)
def test_damaged_rows_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        collected(tmp_path, *rows)
    assert not list((tmp_path).glob("candidates/*.jsonl"))


def test_only_given_solutions_that_are_not_continued_can_have_a_stated_grading(tmp_path):
    rows = [{"question": "a", "response": "b"}]
    with pytest.raises(ValueError, match="got solution 0 .'a'. without a correctness, .*correct_column"):
        collect_rollouts(solutions=rows, output_dir=tmp_path, num_continuations=0, grading="stated")
    with pytest.raises(ValueError, match="grading: got 'stated' with given solutions and num_continuations=2"):
        collect_rollouts(solutions=rows, output_dir=tmp_path, num_continuations=2, grading="stated")
