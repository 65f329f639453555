"""Tests rows and settings: the JSON on disk does not change, access by key warns, and only one module uses keys."""

import ast
import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
from fake_sampler import FakeSampler
from rollout_folders import write_rollouts

from erprm_trl.dial.experiments.chain import DialChain
from erprm_trl.dial.processbench import judged_solutions
from erprm_trl.report import write_report
from erprm_trl.rollouts import CollectionSettings, Question, RolloutDataset, RolloutRow, collect_rollouts
from erprm_trl.rollouts.records import as_rows
from erprm_trl.selection import measure_calibration, paired_differences, score_rollouts, selection_curves


ROOT = Path(__file__).parents[2]
WARNING = "rows are RolloutRow objects now"

# Lines that release 0.1 wrote: a fixed collection, a collection of samples with token ids, and an adaptive collection.
SAMPLER = (
    '{"backend": "fake", "model": "m", "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 40, "seed": 7}'
)
PLAIN_LINE = (
    '{"chunk": 0, "question_index": 1, "solution_index": 0, "question": "2 + 3?", "answer": "5", '
    '"steps": ["2 + 3 = 5 \\u2028\\u00e9\\n", "answer 5"], "outcome_reward": 1.0, "prediction": "5", '
    '"finished": true, "num_tokens": 9, "prefix_rewards": [[1.0, 0.0, 0.5]], "question_rewards": null, '
    f'"unusable": null, "sampler": {SAMPLER}}}'
)
SAMPLES_LINE = (
    '{"chunk": 3, "question_index": 7, "solution_index": 1, "question": "2 + 3?", "answer": null, "steps": [], '
    '"outcome_reward": null, "prediction": null, "finished": false, "num_tokens": 2, "prefix_rewards": [], '
    f'"question_rewards": null, "unusable": "no steps", "sampler": {SAMPLER}, "token_ids": [5, 2]}}'
)
ADAPTIVE_LINE = (
    '{"chunk": 0, "question_index": 0, "solution_index": 0, "question": "2 + 3?", "answer": "5", '
    '"steps": ["a\\n", "b"], "outcome_reward": 0.0, "prediction": null, "finished": true, "num_tokens": 4, '
    '"prefix_rewards": [[1.0, 0.0]], "question_rewards": [0.0], "unusable": null, '
    f'"sampler": {SAMPLER}, "token_ids": [3, 4, 1, 2], "prefix_generated": [0], "question_generated": 1}}'
)
PLAIN_CONFIG = (
    '{"num_questions": 7, "questions": "92c9e6ffd85ef7af", "num_solutions": 3, "num_continuations": 4, '
    '"include_question": false, "splitter": "newline", "grading": "exact", "answer_pattern": "answer (\\\\d+)", '
    '"seed": 0, "chunk_size": 2, "sampler": {"backend": "fake", "temperature": 1.0}'
)
CONFIGS = [
    PLAIN_CONFIG + "}",
    PLAIN_CONFIG + ', "store_token_ids": true}',
    PLAIN_CONFIG + ', "allocation": "fixed", "reuse_continuations": true}',
    PLAIN_CONFIG + ', "store_token_ids": true, "allocation": "adaptive", "reuse_continuations": false, '
    '"target_etas": [0.0, 2.0], "tolerance": 0.02}',
]


@pytest.mark.parametrize("line", [PLAIN_LINE, SAMPLES_LINE, ADAPTIVE_LINE], ids=["plain", "samples", "adaptive"])
def test_lines_of_release_0_1_are_read_and_written_unchanged(line):
    row = RolloutRow.from_json(json.loads(line))
    assert json.dumps(row.to_json()) == line
    assert RolloutRow.from_json(row.to_json()) == row


def test_properties_of_a_row():
    row = RolloutRow.from_json(json.loads(PLAIN_LINE))
    assert row.text == "2 + 3 = 5 \u2028é\nanswer 5" and row.prefix(1) == "2 + 3 = 5 \u2028é\n" and row.prefix(0) == ""
    assert row.is_graded and row.is_right and row.is_usable and not row.lacks_continuations
    assert not replace(row, outcome_reward=0.5).is_right  # right is above one half
    assert replace(row, prefix_rewards=[]).lacks_continuations and replace(row, steps=["a"]).lacks_continuations
    assert (row.token_ids, row.prefix_generated, row.question_generated) == (None, None, None)
    samples = RolloutRow.from_json(json.loads(SAMPLES_LINE))
    assert not samples.is_usable and not samples.lacks_continuations and not samples.is_graded
    with pytest.raises(ValueError, match="question 7, solution 1: got no outcome_reward, expected a graded solution"):
        _ = samples.is_right


def test_rows_may_lack_optional_entries_and_have_additional_entries():
    short = {"chunk": 0, "question_index": 0, "solution_index": 0, "question": "q", "steps": ["a"]}
    row = RolloutRow.from_json({**short, "note": "mine"})
    assert row == RolloutRow(**short, extra={"note": "mine"}) and row.prefix_rewards == [] and row.finished
    assert row.to_json()["note"] == "mine" and RolloutRow.from_json(row.to_json()) == row
    assert row.prefix_rewards is not RolloutRow.from_json(short).prefix_rewards
    for name in short:
        with pytest.raises(KeyError, match=name):
            RolloutRow.from_json({key: value for key, value in short.items() if key != name})
    for bad in ([1, 2], "chunk", 7, None, {**short, "chunk": "1"}, {**short, "solution_index": None}):
        with pytest.raises(TypeError):
            RolloutRow.from_json(bad)


def test_access_to_rows_by_key_works_with_a_warning():
    row = RolloutRow.from_json(json.loads(ADAPTIVE_LINE))
    with pytest.warns(FutureWarning, match=r'row\["steps"\]: .*Use row.steps'):
        assert row["steps"] == ["a\n", "b"]
    with pytest.warns(FutureWarning, match=WARNING):
        assert {**row} == dict(row.items()) == json.loads(ADAPTIVE_LINE)
    plain = RolloutRow.from_json(json.loads(PLAIN_LINE))
    with pytest.warns(FutureWarning, match=WARNING):
        assert "steps" in plain and "prefix_generated" not in plain and plain.get("token_ids", "none") == "none"
    with pytest.warns(FutureWarning, match=WARNING), pytest.raises(KeyError, match="token_ids"):
        _ = plain["token_ids"]
    assert isinstance(row, Mapping) and len(row) == 17 and bool(row)


@pytest.mark.parametrize("text", CONFIGS, ids=["plain", "tokens", "reuse", "adaptive"])
def test_settings_of_release_0_1_are_read_and_written_unchanged(text):
    settings = CollectionSettings.from_json(json.loads(text))
    assert json.dumps(settings.to_json()) == text
    assert settings.differences(json.loads(text)) == []
    assert settings == CollectionSettings.from_json(settings.to_json())


def test_properties_of_settings():
    plain, _, reuse, adaptive = (CollectionSettings.from_json(json.loads(text)) for text in CONFIGS)
    assert plain.chunk_sizes == [6, 6, 6, 3]
    assert [settings.shares_continuations for settings in (plain, reuse, adaptive)] == [False, True, True]
    assert [settings.is_adaptive for settings in (plain, reuse, adaptive)] == [False, False, True]
    assert (plain.allocation, plain.reuse_continuations, plain.target_etas) == ("fixed", False, None)
    old = {**plain.to_json(), "seed": 3, "sampler": {"backend": "fake", "temperature": 0.7}, "gone": 1}
    assert plain.differences(old) == [
        "seed was 3 and is now 0",
        "sampler.temperature was 0.7 and is now 1.0",
        "gone was 1 and is now None",
    ]


def test_missing_settings_count_as_the_behaviour_of_older_releases():
    plain = CollectionSettings.from_json(json.loads(CONFIGS[0]))
    assert (plain.reasoning, plain.steps_of, plain.stop, plain.continue_from) == (False, "both", [], "text")
    new = dataclasses.replace(plain, reasoning=None, steps_of="answer", stop=["Q:"], continue_from="tokens")
    assert set(new.differences(json.loads(CONFIGS[0]))) == {
        "reasoning was False and is now None",
        "steps_of was 'both' and is now 'answer'",
        "stop was [] and is now ['Q:']",
        "continue_from was 'text' and is now 'tokens'",
    }
    assert new.differences(json.loads(json.dumps(new.to_json()))) == []
    assert CollectionSettings.from_json(new.to_json()) == new
    assert plain.differences(new.to_json()) and not plain.differences(plain.to_json())


def test_manifests_may_lack_optional_entries_and_have_additional_entries():
    short = {"num_questions": 3, "num_solutions": 2, "chunk_size": 2}
    settings = CollectionSettings.from_json({**short, "splitter": "step", "later": [1]})
    assert (settings.splitter, settings.num_continuations, settings.chunk_sizes) == ("step", 0, [4, 2])
    assert settings.to_json()["later"] == [1]
    for name in short:
        with pytest.raises(ValueError, match=f"Settings of a collection: got .*expected '{name}' too"):
            CollectionSettings.from_json({key: value for key, value in short.items() if key != name})


def test_a_collection_has_its_settings(tmp_path):
    questions = [Question(f"q{index}?", "1") for index in range(3)]
    options = {"num_continuations": 2, "grading": "exact", "answer_pattern": r"answer (\d)", "show_progress": False}
    data = collect_rollouts(questions, FakeSampler(), tmp_path, chunk_size=2, **options)
    assert (
        data.settings.to_json()
        == data.manifest["config"]
        == json.loads((tmp_path / "manifest.json").read_text())["config"]
    )
    assert data.settings == RolloutDataset(tmp_path).settings
    assert (data.settings.num_continuations, data.settings.chunk_size) == (2, 2)
    lines = (tmp_path / "rollouts-00000.jsonl").read_text().splitlines()
    assert [json.dumps(row.to_json()) for row in data] == lines


def test_public_functions_accept_rows_and_mappings(tmp_path):
    rows = [[RolloutRow.from_json(json.loads(PLAIN_LINE)), RolloutRow.from_json(json.loads(ADAPTIVE_LINE))]]
    mappings = [[{"outcome_reward": 1.0, "prediction": "5"}, {"outcome_reward": 0.0, "prediction": None}]]
    scores = {"a": [[[0.9], [0.2]]], "b": [[[0.1], [0.2]]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for function in (selection_curves, paired_differences):
            assert function(rows, scores, [1, 2]) == function(mappings, scores, [1, 2])
    with pytest.raises(
        ValueError, match="got a mapping with .'prediction'. for question 0, solution 1, expected 'outcome"
    ):
        selection_curves([[mappings[0][0], {"prediction": "4"}]], scores, [1])
    assert as_rows(rows)[0][0] is rows[0][0]


@pytest.mark.slow("collects, trains and writes a report")
def test_the_package_never_reads_rows_by_key(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", f".*{WARNING}", FutureWarning)
        chain = DialChain(str(tmp_path), 4, 2, 2, test_questions=3, num_samples=2, etas=[0.0], max_steps=1)
        chain.run()
        rollouts = RolloutDataset(tmp_path / "rollouts")
        scorer = chain.train(rollouts, eta=2.0, label_estimator="posterior", label_weighting="precision")
        measure_calibration(rollouts, score_rollouts(scorer, rollouts))
        judged_solutions(RolloutDataset(tmp_path / "samples"))
        write_report(tmp_path)


KEYS = {item.name for record in (RolloutRow, CollectionSettings) for item in fields(record)} - {"extra"}
# Subscripted expressions that are other objects with such keys. `row` is a rollout row, unless the module reads other
# rows.
OTHER_OBJECTS = {
    "batch": "a batch of tensors",
    "choice": "a server's completion",
    "counts": "a counter",
    "entry": "a log",
    "held": "a scored row",
    "fields": "a request",
    "first": "a calibration",
    "line": "a result of guided search",
    "logs": "a log",
    "metrics": "a log",
    "noise": "the label noise of a collection",
    "shot": "a solved example in a prompt",
    "solution": "a result of guided search",
    "summary": "the summary of a manifest",
    "written": "a scored row",
}
OTHER_ROWS = {
    "erprm_trl/reward_model/scoring/scorer_file.py": "settings of a scorer",
    "erprm_trl/dial/experiments/agents.py": "questions",
    "erprm_trl/dial/experiments/policies.py": "questions",
    "erprm_trl/rollouts/agents/tool_loop.py": "a row of a dataset for an environment",
    "erprm_trl/rollouts/grading/grader.py": "settings of a grader",
    "erprm_trl/rollouts/grading/worker.py": "settings of a grader",
    "erprm_trl/selection/evaluation/processbench.py": "rows of ProcessBench",
    "tests/benchmarks/collection_speed.py": "questions",
    "tests/benchmarks/fork_cache.py": "questions",
    "tests/benchmarks/credit_study.py": "settings of a method",
    "tests/benchmarks/synchronisations.py": "questions",
    "tests/benchmarks/grading_cases.py": "rows of public question sets",
    "tests/benchmarks/scoring_server.py": "questions",
    "tests/benchmarks/scoring_speed.py": "questions",
    "tests/benchmarks/label_noise.py": "judged solutions",
    "tests/benchmarks/monte_carlo_scorer.py": "questions",
    "tests/benchmarks/vllm_scoring.py": "questions",
    "tests/benchmarks/gpu_stages/tables.py": "records of a measurement",
    "tests/benchmarks/kills.py": "lines as they are on disk",
    "tests/benchmarks/million_questions.py": "the summary of a manifest",
}


def lookups(source):
    """Subscripts and calls of `get` with a key of a row or of settings, as (line, subscripted expression, key)."""
    for node in ast.walk(ast.parse(source)):
        key = None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            subject, key = node.value, node.slice.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("get", "pop", "setdefault") and isinstance(node.args[0], ast.Constant):
                subject, key = node.func.value, node.args[0].value
        if key in KEYS:
            yield node.lineno, ast.unparse(subject), key


def test_lookups_are_found():
    source = (
        'row["steps"]\nself.config["seed"]\nrows[i]["answer"]\nrow.get("unusable")\nmanifest["config"]["splitter"]'
    )
    assert len(list(lookups(source))) == 5
    assert not list(lookups('row.steps\nrow["prompt_ids"]\npick["reward"]\nmanifest["config"]'))


def test_rows_and_settings_are_read_by_key_in_one_module_only():
    modules = [*(ROOT / "erprm_trl").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    modules += (ROOT / "tests" / "benchmarks").rglob("*.py")
    assert len(modules) > 100
    wrong = [
        f"{name}:{line}: {subject}[{key!r}]"
        for path in modules
        if (name := path.relative_to(ROOT).as_posix()) != "erprm_trl/rollouts/records.py"
        for line, subject, key in lookups(path.read_text(encoding="utf-8"))
        if subject not in OTHER_OBJECTS and name not in OTHER_ROWS
    ]
    assert not wrong, (
        f"{wrong}: expected attributes of RolloutRow and CollectionSettings. Other objects are listed above."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome_reward": "1"}, "got the reward '1', expected a finite number"),
        ({"outcome_reward": float("nan")}, "got the reward 'nan'"),
        ({"prefix_rewards": [[1.0, None]]}, "got the reward 'None'"),
        ({"prefix_rewards": None}, "damaged"),
        ({"steps": None}, "damaged"),
        ({"steps": "one text"}, "got steps 'one text', expected a list of texts"),
    ],
    ids=str,
)
def test_damaged_values_of_a_row_name_the_file_and_the_line(tmp_path, change, message):
    write_rollouts(tmp_path / "rollouts", [[(1.0, [1.0, 0.0])], [(0.0, [1.0, 0.0])]])
    shard = tmp_path / "rollouts" / "rollouts-00000.jsonl"
    first, second = shard.read_text().splitlines()
    shard.write_text(f"{first}\n{json.dumps({**json.loads(second), **change})}\n")
    with pytest.raises(ValueError, match=f"rollouts-00000.jsonl, line 2: damaged .*{message}|line 2: {message}"):
        RolloutDataset(tmp_path / "rollouts")


def test_rows_of_incomplete_chunks_are_a_warning(tmp_path, caplog):
    write_rollouts(tmp_path / "rollouts", [[(1.0, [1.0, 0.0])], [(0.0, [1.0, 0.0])]])
    assert not caplog.text
    shard = tmp_path / "rollouts" / "rollouts-00000.jsonl"
    shard.write_text(shard.read_text().splitlines(keepends=True)[1])
    assert len(RolloutDataset(tmp_path / "rollouts")) == 0
    assert "1 row of 1 chunk without all their rows are left out. Run the collection again" in caplog.text
