"""ProcessBench's protocol: values worked by hand, naive loops, held-out thresholds, and cached scores."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from erprm_trl.report import format_processbench_table
from erprm_trl.selection import (
    JudgedSolution,
    choose_threshold,
    evaluate_processbench,
    first_error,
    hold_out,
    load_processbench,
    processbench_metrics,
    processbench_scores,
    score_judged,
)


def row(index, label, steps=3, problem=None):
    return {
        "id": f"gsm8k-{index}",
        "generator": "a model",
        "problem": problem or f"problem {index}",
        "steps": [f"step {index}" for index in range(steps)],
        "final_answer_correct": label == -1,
        "label": label,
    }


def solution(index, label, steps=3, problem=None):
    values = row(index, label, steps, problem)
    return JudgedSolution(values["id"], values["problem"], tuple(values["steps"]), label)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_first_error_is_the_first_step_below_the_threshold():
    assert first_error([0.9, 0.4, 0.1], 0.5) == 1
    assert first_error([0.9, 0.5, 0.6], 0.5) == -1  # a score equal to the threshold is not below it
    assert first_error([0.1], 0.5) == 0
    assert first_error([], 0.5) == -1


def test_metrics_worked_by_hand():
    # gsm8k: errors at 0, 1, 2, and only the first is found: 1/3. Correct: 1 of 2. F1 = 2 (1/3) (1/2) / (5/6) = 2/5.
    # math: all are found: 1, 1, 1. Averages: 2/3, 3/4, 7/10.
    labels = {"gsm8k": [0, 1, 2, -1, -1], "math": [3, -1]}
    predictions = {"gsm8k": [0, 0, -1, -1, None], "math": [3, -1]}
    result = processbench_metrics(predictions, labels)
    gsm8k = result["subsets"]["gsm8k"]
    assert [gsm8k[key]["mean"] for key in ("erroneous", "correct", "f1")] == pytest.approx([1 / 3, 1 / 2, 2 / 5])
    assert (gsm8k["num_erroneous"], gsm8k["num_correct"]) == (3, 2)
    average = result["average"]
    assert [average[key]["mean"] for key in ("erroneous", "correct", "f1")] == pytest.approx([2 / 3, 3 / 4, 7 / 10])
    assert result["subsets"]["math"]["f1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    nothing = processbench_metrics({"a": [0, 0]}, {"a": [1, -1]})
    assert nothing["average"]["f1"]["mean"] == 0.0


def test_intervals_equal_the_normal_approximation():
    # 400 solutions of each kind with accuracy 1/2: sd 0.025, so 0.5 +- 1.96 * 0.025.
    labels = {"a": [0] * 400 + [-1] * 400}
    predictions = {"a": [0, 1] * 200 + [-1, 0] * 200}
    figures = processbench_metrics(predictions, labels)["subsets"]["a"]
    for key in ("erroneous", "correct"):
        assert (figures[key]["low"], figures[key]["high"]) == pytest.approx((0.451, 0.549), abs=0.006)
    # To first order, F1 of two accuracies of 1/2 is their mean, so its sd is 0.025 / sqrt(2).
    assert (figures["f1"]["low"], figures["f1"]["high"]) == pytest.approx((0.4653, 0.5347), abs=0.006)


def naive_f1(scores, labels, threshold):
    hits = {True: [], False: []}
    for steps, label in zip(scores, labels, strict=True):
        below = [index for index, score in enumerate(steps) if score < threshold]
        hits[label >= 0].append((below[0] if below else -1) == label if steps else False)
    left, right = (sum(hits[kind]) / len(hits[kind]) for kind in (True, False))
    return 2 * left * right / (left + right) if left + right else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_beats_the_chosen_one(seed):
    rng = random.Random(seed)
    scores, labels = [], []
    for index in range(40):
        steps = [rng.choice([0.0, 1.0, round(rng.random(), 1), rng.random()]) for _ in range(rng.randint(1, 5))]
        labels.append(-1 if index < 15 else rng.randrange(len(steps)))
        scores.append([] if index == 20 else steps)
    chosen = choose_threshold(scores, labels)
    assert 0.0 < chosen < 1.0
    best = max(naive_f1(scores, labels, threshold) for threshold in np.linspace(0.0005, 0.9995, 1000))
    assert naive_f1(scores, labels, chosen) >= best - 1e-12


def test_the_threshold_is_the_middle_of_the_best_interval():
    # The wrong step has 0.2 after 0.8, and the right solution is never below 0.6, so all of (0.2, 0.6] is perfect.
    assert choose_threshold([[0.8, 0.2], [0.9, 0.6]], [1, -1]) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_solutions_of_a_problem_are_held_out_together(seed):
    data = {
        name: [solution(i, -1 if i % 2 else 0, problem=f"problem {i // 3}") for i in range(300)]
        for name in ("gsm8k", "math")  # both subsets have the same problems
    }
    test, validation, record = hold_out(data, share=0.3, seed=seed)
    tested = {judged.problem for solutions in test.values() for judged in solutions}
    held = {judged.problem for judged in validation}
    assert not tested & held and len(tested | held) == 100
    assert 15 <= len(held) <= 45 and record["problems"] == len(held)
    assert record["left_out_as_tested"] == 0 and record["by"] == "share" and record["solutions"] == len(validation)
    assert sum(map(len, test.values())) + len(validation) == 600
    shuffled = {name: solutions[::-1] for name, solutions in data.items()}
    assert {judged.problem for judged in hold_out(shuffled, share=0.3, seed=seed)[1]} == held
    assert {judged.problem for judged in hold_out(data, share=0.3, seed=seed + 7)[1]} != held


def test_validation_by_subsets_and_other_data_drops_tested_problems():
    data = {"gsm8k": [solution(i, i - 1) for i in range(3)], "math": [solution(i, -1) for i in range(2, 5)]}
    test, validation, record = hold_out(data, subsets=["gsm8k"])
    assert list(test) == ["math"] and [judged.problem for judged in validation] == ["problem 0", "problem 1"]
    assert record == {"by": "subsets", "subsets": ["gsm8k"], "solutions": 2, "problems": 2, "left_out_as_tested": 1}
    test, validation, record = hold_out(data, other={"own": [solution(9, -1), solution(4, -1)]})
    assert test == data and [judged.problem for judged in validation] == ["problem 9"]
    assert (record["by"], record["left_out_as_tested"]) == ("other", 1)
    assert hold_out(data)[1] == []


def test_two_models_are_evaluated_and_compared():
    data = {"a": [solution(i, [-1, 1, -1, 0][i % 4]) for i in range(40)]}
    knows = {judged: [0.1 if index == judged.label else 0.9 for index in range(3)] for judged in data["a"]}
    flags_all = {judged: [0.3, 0.3, 0.3] for judged in data["a"]}
    too_long = dict.fromkeys(data["a"], [])
    scores = {"flags all": flags_all, "knows": knows, "too long": too_long}
    results = evaluate_processbench(data, scores, threshold=0.5)
    assert results["knows"]["average"]["f1"]["mean"] == 1.0
    assert results["flags all"]["average"]["erroneous"]["mean"] == 0.5  # the solutions with label 0
    assert results["flags all"]["average"]["f1"]["mean"] == 0.0
    assert results["too long"]["too_long"] == 40 and results["too long"]["average"]["correct"]["mean"] == 0.0
    assert results["knows"]["f1_minus_first"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert "f1_minus_first" not in results["flags all"]
    json.dumps(results, allow_nan=False)
    table = format_processbench_table(results)
    assert "100.0 [100.0, 100.0]" in table and "40 solutions are too long" in table
    chosen = evaluate_processbench(data, {"knows": knows}, validation=data["a"])
    assert chosen["knows"]["threshold"] == pytest.approx(0.5)


def test_every_kind_of_source_is_loaded(tmp_path):
    rows = {"gsm8k": [row(0, -1), row(1, 2)], "math": [row(2, 0)]}
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "gsm8k.jsonl", rows["gsm8k"])
    (tmp_path / "files" / "math.json").write_text(json.dumps(rows["math"]))
    Dataset.from_list(rows["gsm8k"]).to_parquet(tmp_path / "gsm8k.parquet")
    saved = DatasetDict({name: Dataset.from_list(subset) for name, subset in rows.items()})
    saved.save_to_disk(tmp_path / "saved")
    saved["math"].save_to_disk(tmp_path / "one")
    expected = {"gsm8k": [solution(0, -1), solution(1, 2)], "math": [solution(2, 0)]}
    assert load_processbench(str(tmp_path / "files")) == expected
    assert load_processbench(str(tmp_path / "saved")) == expected
    assert load_processbench(str(tmp_path / "one")) == {"one": expected["math"]}
    assert load_processbench(str(tmp_path / "gsm8k.parquet")) == {"gsm8k": expected["gsm8k"]}
    assert list(load_processbench(str(tmp_path / "files"), ["math"])) == ["math"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, r"row 1: column 'label' got 3 with 3 steps, expected the index of the first wrong"),
        ({"label": -2}, "row 1: column 'label' got -2"),
        ({"label": None}, "row 1: column 'label' got None"),
        ({"steps": []}, r"row 1: column 'steps' got '\[\]', expected a list of non-empty strings"),
        ({"steps": ["a", " "]}, "row 1: column 'steps'"),
        ({"problem": ""}, "row 1: column 'problem' got ''"),
    ],
)
def test_errors_name_invalid_rows(tmp_path, change, message):
    write_jsonl(tmp_path / "gsm8k.jsonl", [row(0, -1), {**row(1, 0), **change}])
    with pytest.raises(ValueError, match=f"gsm8k, {message}"):
        load_processbench(str(tmp_path / "gsm8k.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": True}, "column 'label' got True"),
        ({"steps": "one text"}, "column 'steps' got 'one text'"),
        ({"label": None, "steps": None, "completion": "x"}, "got columns .* without .*steps, label, expected"),
    ],
)
def test_errors_name_invalid_labels_and_steps(change, message, tmp_path):
    values = {name: value for name, value in {**row(0, -1), **change}.items() if value is not None}
    write_jsonl(tmp_path / "gsm8k.jsonl", [values])
    with pytest.raises(ValueError, match=message):
        load_processbench(str(tmp_path / "gsm8k.jsonl"))


@pytest.mark.parametrize(
    ("source", "subsets", "message"),
    [
        ("gsm8k.jsonl", ["math"], r"got \['math'\], expected .*\['gsm8k'\]"),
        ("nothing.jsonl", None, "no file at"),
        ("empty", None, "no file at"),
    ],
)
def test_errors_name_sources_without_judged_solutions(source, subsets, message, tmp_path):
    write_jsonl(tmp_path / "gsm8k.jsonl", [row(0, -1)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        load_processbench(str(tmp_path / source), *([subsets] if subsets else []))


def test_metrics_need_solutions_with_and_without_an_error():
    with pytest.raises(ValueError, match="'b': got 0 .*an error and 1 without"):
        processbench_metrics({"a": [-1, 0], "b": [-1]}, {"a": [-1, 0], "b": [-1]})
    with pytest.raises(ValueError, match="validation .*: got 1 .*and 0 without"):
        choose_threshold([[0.5]], [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 95}, "`level` is 95, expected a fraction"),
        ({"num_resamples": 0}, "`num_resamples` is 0, .*at least 1"),
    ],
)
def test_errors_name_invalid_bootstrap_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        processbench_metrics({"a": [-1, 0]}, {"a": [-1, 0]}, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subsets": ["a"], "share": 0.2}, "subsets and share, expected at most one"),
        ({"subsets": ["c"]}, r"Validation subsets: got \['c'\]"),
        ({"subsets": ["a", "b"]}, "got 3 validation and 0 test solutions"),
        ({"other": {"same": [solution(0, -1), solution(1, 0)]}}, "Validation by other: got 0 .*3 test"),
        ({"share": 1.0}, "`validation_share` is 1.0"),
    ],
)
def test_errors_name_invalid_validation_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hold_out({"a": [solution(0, -1), solution(1, 0)], "b": [solution(2, -1)]}, **arguments)


class CountingScorer:
    """Scores by the length of a step, and raises an error after `breaks_after` solutions."""

    def __init__(self, breaks_after=None):
        self.seen, self.breaks_after = [], breaks_after

    def score(self, questions, steps, *, skip_too_long=False):
        assert skip_too_long
        if self.breaks_after is not None and len(self.seen) >= self.breaks_after:
            raise KeyboardInterrupt
        self.seen += questions
        return [[1 / len(step) for step in solution] for solution in steps]


def test_scores_survive_an_interruption_and_are_not_computed_twice(tmp_path, monkeypatch):
    solutions = [solution(i, -1, steps=1 + i % 4) for i in range(10)] + [solution(3, 0, steps=4)]
    scorer = CountingScorer(breaks_after=6)
    monkeypatch.setattr(processbench_scores.StepScorer, "from_pretrained", lambda *args, **kwargs: scorer)
    with pytest.raises(KeyboardInterrupt):
        score_judged("a/model", solutions, tmp_path, chunk_size=3)
    assert len(scorer.seen) == 6
    scorer.breaks_after = None
    # Continued in another order and with one more problem. Only new solutions are scored.
    more = [solution(77, -1), *solutions[::-1]]
    scores = score_judged("a/model", more, tmp_path, chunk_size=3)
    assert len(scorer.seen) == len(set(scorer.seen)) == 11  # solutions with equal problem and steps are scored once
    assert scores == {judged: [1 / 6] * len(judged.steps) for judged in more}
    monkeypatch.setattr(
        processbench_scores.StepScorer, "from_pretrained", None
    )  # everything is scored, so no model is loaded
    assert score_judged("a/model", solutions, tmp_path)[solutions[0]] == [1 / 6]


def test_scores_of_other_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processbench_scores.StepScorer, "from_pretrained", lambda *args, **kwargs: CountingScorer())
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    score_judged(str(model), [solution(0, -1)], tmp_path / "out")
    with pytest.raises(ValueError, match="got scores of .*model' with files"):
        score_judged("another/model", [solution(0, -1)], tmp_path / "out")
    (model / "model.safetensors").write_text("weights, trained again")
    with pytest.raises(ValueError, match="delete the file to score again"):
        score_judged(str(model), [solution(0, -1)], tmp_path / "out")
    (tmp_path / "out" / "step_scores.json").write_text('{"scores": {')
    with pytest.raises(ValueError, match="damaged file"):
        score_judged(str(model), [solution(0, -1)], tmp_path / "out")


def test_cached_scores_of_two_etas_are_not_mixed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        processbench_scores.StepScorer,
        "from_pretrained",
        lambda path, **options: asked.append(options) or CountingScorer(),
    )
    score_judged("a/model", [solution(0, -1)], tmp_path / "out", eta=2.0, trained_eta=0.0)
    assert asked == [{"batch_size": 32, "backend": "local", "eta": 2.0, "trained_eta": 0.0}]
    score_judged("a/model", [solution(0, -1)], tmp_path / "out", eta=2.0, trained_eta=0.0)
    for etas in ({}, {"eta": 3.0, "trained_eta": 0.0}, {"eta": 2.0}):
        with pytest.raises(ValueError, match="got scores of .*eta=2.0, trained_eta=0.0, expected scores of"):
            score_judged("a/model", [solution(0, -1)], tmp_path / "out", **etas)
    score_judged("a/model", [solution(0, -1)], tmp_path / "plain")
    assert "eta" not in json.loads((tmp_path / "plain" / "step_scores.json").read_text())


def test_strings_instead_of_lists_are_errors(tmp_path):
    with pytest.raises(TypeError, match="subsets: got the str 'gsm8k', expected a list of strings"):
        load_processbench(tmp_path, subsets="gsm8k")
    with pytest.raises(TypeError, match="subsets: got the str 'gsm8k'"):
        hold_out({"gsm8k": [solution(0, -1)]}, subsets="gsm8k")
    with pytest.raises(TypeError, match=r"steps of the solutions\[1\]: got the str 'a'"):
        score_judged("a/model", [solution(0, -1), solution(1, -1)._replace(steps="a")], tmp_path)
    assert not (tmp_path / "step_scores.json").exists()


def test_paths_may_have_a_tilde_and_be_path_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        processbench_scores.StepScorer,
        "from_pretrained",
        lambda path, **kwargs: asked.append(path) or CountingScorer(),
    )
    judged = solution(0, -1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part.jsonl").write_text(json.dumps({**judged._asdict(), "steps": list(judged.steps)}))
    for source in ("~/data", Path("~/data/part.jsonl")):
        assert load_processbench(source) == {"part": [judged]}
    score_judged(Path("~/model"), [judged], "~/out")
    assert asked == [str(tmp_path / "model")] and (tmp_path / "out" / "step_scores.json").exists()


def test_other_columns_texts_and_labels_per_step(tmp_path):
    write_jsonl(
        tmp_path / "judged.jsonl",
        [
            {"prompt": "q", "completions": ["a", "b", "c"], "labels": [1.0, 0.4, 0.9]},
            {"prompt": "q", "completions": ["a"], "labels": [0.5]},
        ],
    )
    columns = {"problem_column": "prompt", "steps_column": "completions", "label_column": "labels"}
    assert load_processbench(tmp_path / "judged.jsonl", **columns)["judged"] == [
        JudgedSolution("0", "q", ("a", "b", "c"), 1),
        JudgedSolution("1", "q", ("a",), -1),
    ]
    write_jsonl(tmp_path / "text.jsonl", [{"problem": "q", "steps": "one\ntwo", "label": 1}])
    assert load_processbench(tmp_path / "text.jsonl", splitter="newline")["text"] == [
        JudgedSolution("0", "q", ("one", "two"), 1)
    ]
    for labels in ([True], [2.0, 0.0, 1.0], ["+", "-", "+"]):
        write_jsonl(tmp_path / "judged.jsonl", [{"prompt": "q", "completions": ["a", "b", "c"], "labels": labels}])
        with pytest.raises(
            ValueError, match="judged, row 0: column 'labels' got .* with 3 steps, expected one boolean"
        ):
            load_processbench(tmp_path / "judged.jsonl", **columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got no rows"), ('{"problem": "q", "steps": ["a"]\n', "line 1: .*expected JSON objects")],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "judged.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"judged.*{message}"):
        load_processbench(tmp_path / "judged.jsonl")
