"""Scores of the solutions of a dataset in a file: in order, with any columns, and continued after a kill."""

import json
import math

import pytest

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.rollouts import load_solutions
from erprm_trl.selection import score_rows
from erprm_trl.selection.evaluation import JudgedSolution, score_judged


class LengthBackend:
    """Scores a step by its length, an eighth per character. A solution with a step "long" exceeds the context."""

    model_name, context_length, weights = "lengths", 100, None
    prm_format = PRMFormat(splitter=" ; ", aggregation="min")

    def __init__(self):
        self.scored = []

    def score(self, questions, steps, skip_too_long=False):
        assert skip_too_long
        self.scored += list(zip(questions, steps, strict=True))
        return [[] if "long" in row else [len(step) / 8 for step in row] for row in steps]


@pytest.fixture
def backend(monkeypatch):
    backend = LengthBackend()

    def load(path, **options):
        assert path == "model" and options.pop("batch_size") == 2
        return StepScorer.from_backend(backend, **options)

    monkeypatch.setattr(StepScorer, "from_pretrained", load)
    return backend


ROWS = [
    {"question": "q0", "steps": ["a", "bb"], "id": 7},
    {"question": "q1", "steps": ["ccc"], "id": 8},
    {"question": "q2", "steps": ["long", "d"], "id": 9},
    {"question": "q3", "steps": [], "id": 10},
    {"question": "q4", "steps": ["eeee", "f"], "id": 11},
]
SCORES = [[0.125, 0.25], [0.375], [], [], [0.5, 0.125]]


def score(rows, folder, **options):
    return list(score_rows("model", rows, folder, chunk_size=2, batch_size=2, **options))


def written(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_each_chunk_that_is_scored_reports_its_size_and_time(backend, tmp_path):
    chunks = []
    score(ROWS, tmp_path, on_chunk=lambda *chunk: chunks.append(chunk))
    assert [size for size, _ in chunks] == [2, 2, 1] and all(seconds > 0 for _, seconds in chunks)
    score(ROWS, tmp_path, on_chunk=lambda *chunk: chunks.append(chunk))
    assert len(chunks) == 3  # nothing is scored again


def test_rows_keep_their_order_and_columns(backend, tmp_path):
    expected = [
        {**row, "step_scores": scores, "score": min(scores, default=None)}
        for row, scores in zip(ROWS, SCORES, strict=True)
    ]
    assert score(ROWS, tmp_path) == expected == written(tmp_path)
    assert score(iter(ROWS), tmp_path / "mean", aggregation="mean")[0]["score"] == 0.1875


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "solution": "a ; bb"},
        {"prompt": "q", "completion": "a ; bb"},
        {"prompt": "q", "completions": ["a", "bb"], "labels": [True, False]},  # TRL's stepwise form
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a ; bb"}],
        },
    ],
    ids=lambda row: " ".join(row),
)
def test_forms_of_a_solution(backend, tmp_path, row):
    (scored,) = score([row], tmp_path)
    assert backend.scored == [("q", ("a", "bb"))]
    assert scored == {**row, "steps": ["a", "bb"], "step_scores": [0.125, 0.25], "score": 0.125}


@pytest.mark.parametrize(
    "column", ["response", "completion", "generation", "output", "candidate", "sample", "solution", "text"]
)
def test_load_solutions_and_scores_know_the_same_columns(backend, tmp_path, column):
    row = {"question": "q", column: "a ; bb"}
    assert load_solutions([row])[0].text == "a ; bb"
    assert score([row], tmp_path)[0]["steps"] == ["a", "bb"]


def test_a_response_is_scored_rather_than_the_reference_solution(backend, tmp_path):
    row = {"question": "q", "solution": "reference", "answer": "7", "response": "a ; bb"}
    assert load_solutions([row])[0].text == "a ; bb"
    assert score([row], tmp_path)[0]["steps"] == ["a", "bb"]


def test_columns_by_name(backend, tmp_path):
    (scored,) = score([{"a": "q", "b": "x"}], tmp_path, question_column="a", solution_column="b")
    assert scored["score"] == 0.125
    with pytest.raises(ValueError, match="Columns of the solutions: got .'a', 'b'.*'question' or.*`question_column`"):
        score([{"a": "q", "b": "x"}], tmp_path / "other")


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 5])
def test_a_killed_run_continues(backend, tmp_path, kept):
    whole = score(ROWS, tmp_path / "whole")
    text = (tmp_path / "whole" / "scores.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    killed = tmp_path / "killed"
    score(ROWS, killed)
    (killed / "scores.jsonl").write_text("".join(lines[:kept]) + (lines[kept][:9] if kept < 5 else ""))
    backend.scored.clear()
    assert score(ROWS, killed) == whole
    assert (killed / "scores.jsonl").read_text() == text
    assert [question for question, _ in backend.scored] == [f"q{i}" for i in range(kept, 5)]


def test_scores_of_others_are_not_continued(backend, tmp_path):
    score(ROWS, tmp_path)
    with pytest.raises(ValueError, match="line 2: holds 'q1' in column 'question', and the given row has 'other'"):
        score([ROWS[0], {**ROWS[1], "question": "other"}], tmp_path)
    with pytest.raises(ValueError, match="line 5: holds a row after the last given row.*Choose another folder"):
        score(ROWS[:4], tmp_path)
    with pytest.raises(
        ValueError, match=r"other settings \(aggregation was None and is now 'last'\), expected the settings"
    ):
        score(ROWS, tmp_path, aggregation="last")
    with pytest.raises(ValueError, match="reward_model was 'model' and is now 'another'"):
        list(score_rows("another", ROWS, tmp_path))


def test_a_refused_call_leaves_no_settings_that_refuse_the_corrected_call(backend, tmp_path):
    with pytest.raises(ValueError, match="trained_eta=0"):
        score(ROWS, tmp_path, eta=2.0)
    assert len(score(ROWS, tmp_path, eta=2.0, trained_eta=0.0)) == len(ROWS)


def test_scores_at_another_eta_are_in_another_file(backend, tmp_path):
    read = score(ROWS, tmp_path / "2", eta=2.0, trained_eta=0.0)
    value = math.log(1 + 0.125 * (math.e**2 - 1)) / 2
    assert read[0]["step_scores"][0] == pytest.approx(value) and read[0]["score"] == pytest.approx(value)
    assert score(ROWS, tmp_path / "2", eta=2.0, trained_eta=0.0) == read
    for options in ({}, {"eta": 3.0, "trained_eta": 0.0}, {"eta": 2.0, "trained_eta": 1.0}):
        with pytest.raises(ValueError, match="got scores with other settings .*eta was"):
            score(ROWS, tmp_path / "2", **options)
    score(ROWS, tmp_path / "plain")
    # Folders of earlier versions are continued: nothing is added to the settings without an eta.
    assert "eta" not in (tmp_path / "plain" / "score_settings.json").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": None, "steps": ["a"]}, "Row 1: column 'question' is 'None' .NoneType., expected a text, or"),
        ({"question": "q", "steps": ["a", 3]}, "Row 1: column 'steps' is .*expected a text or a list of steps"),
        ({"question": "q"}, "Row 1: column 'steps' is 'None'"),
        (
            {"question": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "steps": []},
            "a conversation with one message",
        ),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(backend, tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        score([ROWS[0], row], tmp_path)
    with pytest.raises(ValueError, match="got no rows"):
        score([], tmp_path)


def test_a_run_is_not_continued_with_other_values_in_any_column(backend, tmp_path):
    score(ROWS[:3], tmp_path)
    with pytest.raises(ValueError, match="line 3: holds '9' in column 'id', and the given row has '90'"):
        score([*ROWS[:2], {**ROWS[2], "id": 90}], tmp_path)
    with pytest.raises(ValueError, match="line 1: holds 'None' in column 'new', and the given row has '1'"):
        score([{**ROWS[0], "new": 1}, *ROWS[1:3]], tmp_path)
    with pytest.raises(ValueError, match="line 3: holds a row after the last given row"):
        score(ROWS[:2], tmp_path)


def test_columns_with_the_names_of_results_are_kept(backend, tmp_path):
    rows = [{"question": "q", "steps": "a ; bb", "score": 5}, {"question": "q", "steps": ["a", "bb"], "score": 0.125}]
    first, second = score(rows, tmp_path)
    assert first == {"question": "q", "given_steps": "a ; bb", "given_score": 5} | {
        "steps": ["a", "bb"], "step_scores": first["step_scores"], "score": first["score"]
    }  # fmt: skip
    assert second == {"question": "q", "steps": ["a", "bb"], "step_scores": [0.125, 0.25], "score": 0.125}
    backend.scored.clear()
    assert score(rows, tmp_path) == [first, second] and not backend.scored


def test_values_of_numpy_are_written_as_numbers_and_continued(backend, tmp_path):
    np = pytest.importorskip("numpy")
    extra = {"embedding": np.arange(2000), "weight": np.float32(0.5), "when": object(), "gap": math.nan}
    score([{**ROWS[0], **extra}], tmp_path)
    (row,) = written(tmp_path)
    assert row["embedding"] == list(range(2000)) and row["weight"] == 0.5
    backend.scored.clear()
    score([{**ROWS[0], **extra, "when": object()}], tmp_path)  # the text of an object may differ in each run
    assert not backend.scored


@pytest.mark.parametrize(
    "line", ["\n", "[1, 2]\n", '{"question": "q0", "steps": ["a", "bb"], "id": 7}\n', '{"question": \n'], ids=repr
)
def test_a_damaged_line_is_named(backend, tmp_path, line):
    score(ROWS[:2], tmp_path)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "scores.jsonl").write_text(line + lines[1])
    with pytest.raises(ValueError, match="scores.jsonl, line 1: is damaged .*delete the file to score again"):
        score(ROWS, tmp_path)


def test_scores_without_their_settings_are_not_continued(backend, tmp_path):
    score(ROWS[:2], tmp_path)
    for text in ("{", "3"):
        (tmp_path / "score_settings.json").write_text(text)
        with pytest.raises(ValueError, match="score_settings.json: got no settings"):
            score(ROWS, tmp_path)
    (tmp_path / "score_settings.json").unlink()
    with pytest.raises(ValueError, match="score_settings.json: got no settings"):
        score(ROWS, tmp_path, aggregation="mean")


def test_two_runs_cannot_write_into_one_folder(backend, tmp_path):
    first = score_rows("model", ROWS, tmp_path, chunk_size=2, batch_size=2)
    next(first)
    with pytest.raises(RuntimeError, match="another run is scoring into this folder. Wait until it ends"):
        score(ROWS, tmp_path)
    assert len([*first]) == 4 and len(score(ROWS, tmp_path)) == 5  # the first run is not disturbed


def test_a_server_with_another_model_is_refused(monkeypatch, tmp_path):
    backend = LengthBackend()
    monkeypatch.setattr(StepScorer, "from_pretrained", lambda path, **options: StepScorer.from_backend(backend))
    url = "http://localhost:8100"
    list(score_rows(url, ROWS[:3], tmp_path))
    list(score_rows(url, ROWS[:4], tmp_path))  # the same model
    monkeypatch.setattr(backend, "score", lambda questions, steps, **_: [[0.5] * len(row) for row in steps])
    with pytest.raises(ValueError, match=r"scores.jsonl: got the scores \[0.375\] .* scores with \[0.5\]"):
        list(score_rows(url, ROWS, tmp_path))
    assert len(written(tmp_path)) == 4
    judged = [JudgedSolution("0", "q", ("a", "bb"), 0), JudgedSolution("1", "q", ("ccc",), -1)]
    score_judged(url, judged[:1], tmp_path)
    monkeypatch.setattr(backend, "score", LengthBackend().score)
    with pytest.raises(ValueError, match="step_scores.json: got the scores"):
        score_judged(url, judged, tmp_path)
