"""Scorer files in place of a reward model's path, in every function that takes one, on the dial task."""

import json
import math
from pathlib import Path

import pytest
import yaml
from recipe_runs import RECIPES, parse
from serving import serving

from erprm_trl import JudgeScorer, MonteCarloScorer, StepRewardFunction, StepScorer, dial
from erprm_trl.reward_model.scoring import load_format
from erprm_trl.reward_model.scoring.scorer_file import is_scorer_file, scorer_file_identity
from erprm_trl.reward_model.scoring.server import scoring_app
from erprm_trl.selection import guided_search, load_processbench, score_judged, score_rows


SAMPLER = {"backend": "transformers", "model_name_or_path": dial.BASE_PATH, "max_new_tokens": 48}
ROWS = dial.make_questions(3, seed=1)
QUESTIONS = {"dataset_name": "erprm_trl.dial:make_questions", "dataset_kwargs": {"num_questions": 3, "seed": 1}}
MONTE_CARLO = {
    "scorer": "monte_carlo",
    "sampler": SAMPLER,
    "answers": QUESTIONS,
    "grading": "exact",
    "answer_pattern": dial.ANSWER_PATTERN,
    "num_continuations": 2,
    "splitter": dial.SEPARATOR,
}
JUDGE = {
    "scorer": "judge",
    "sampler": {**SAMPLER, "use_chat_template": False},
    # After this prompt the shipped policy writes a verdict token, as a language model that can check steps.
    "prompt": "check {question} {steps}",
    "verdict_tokens": [dial.GOOD_MARK, dial.BAD_MARK],
    "splitter": dial.SEPARATOR,
}
FILES = {"monte_carlo": MONTE_CARLO, "judge": JUDGE}


def write(folder, settings, name="scorer.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return str(path)


@pytest.fixture(params=sorted(FILES))
def path(request, tmp_path):
    return write(tmp_path, FILES[request.param])


def right_steps(question):
    """The steps of the right solution."""
    asked = dial.DialQuestion.parse(question)
    position, steps = asked.start, []
    for operator, amount in asked.moves:
        result = dial.task.turn(position, operator, amount)
        steps.append(f"{position} {operator} {amount} = {result}")
        position = result
    return [*steps, f"answer {position}"]


def test_a_file_stands_for_a_scorer(path):
    kind = Path(path).read_text()
    scorer = StepScorer.from_pretrained(path, batch_size=7, device="cpu")
    assert isinstance(scorer.backend, JudgeScorer if "judge" in kind else MonteCarloScorer)
    assert load_format(path) == scorer.prm_format and scorer.prm_format.splitter == dial.SEPARATOR
    assert scorer.prm_format.eta == (None if "judge" in kind else 0.0)
    assert (
        f"({Path(dial.BASE_PATH).name}, " in scorer.model_name
        and scorer.context_length == 512
        and scorer.weights is None
    )
    (scores,) = scorer.score([ROWS[0]["question"]], [right_steps(ROWS[0]["question"])])
    assert all(0 <= score <= 1 for score in scores)
    if "judge" not in kind:
        assert scores[-1] == 1.0
        wrong = scorer.score([ROWS[0]["question"]], [["1 + 1 = 3", "answer 0"]])
        assert wrong[0][-1] == 0.0
    for options in ({"prm_format": "math-shepherd"}, {"dtype": "float32"}, {"revision": "main"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: got a value together with the scorer file"):
            StepScorer.from_pretrained(path, **options)


def test_scores_can_be_read_at_another_eta(tmp_path):
    zero = StepScorer.from_pretrained(write(tmp_path, MONTE_CARLO), eta=2.0)
    two = StepScorer.from_pretrained(write(tmp_path, {**MONTE_CARLO, "eta": 2.0}, "two.yaml"))
    solution = [[ROWS[0]["question"]], [right_steps(ROWS[0]["question"])]]
    assert zero.score(*solution)[0] == pytest.approx(two.score(*solution)[0], abs=1e-12)
    assert zero.for_unfinished().eta == 2.0


def test_an_eta_that_yaml_reads_as_a_text(tmp_path):
    assert load_format(write(tmp_path, {**MONTE_CARLO, "eta": "inf"})).eta == math.inf
    assert load_format(write(tmp_path, {**MONTE_CARLO, "eta": "1e1"})).eta == 10.0


def test_functions_take_a_file(path, tmp_path, dial_policy):
    questions = [row["question"] for row in ROWS]
    steps = [right_steps(question) for question in questions]
    scores = StepScorer.from_pretrained(path).score(questions, steps)
    rows = [{"question": q, "steps": s} for q, s in zip(questions, steps, strict=True)]
    assert [row["step_scores"] for row in score_rows(path, rows, tmp_path / "rows")] == scores
    texts = [f" {dial.SEPARATOR} ".join(solution) for solution in steps]
    assert StepRewardFunction(path)(questions, texts) == pytest.approx([min(row) for row in scores])
    with serving(scoring_app(StepScorer.from_pretrained(path))) as url:
        assert StepScorer.from_pretrained(url).score(questions, steps) == scores
    judged = [
        {"id": str(index), "problem": q, "steps": s, "label": -1}
        for index, (q, s) in enumerate(zip(questions, steps, strict=True))
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    (solutions,) = load_processbench(tmp_path / "judged.jsonl").values()
    assert list(score_judged(path, solutions, tmp_path / "scores").values()) == scores


def test_guided_search_takes_a_file(path):
    from erprm_trl import TransformersSampler

    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=16)
    scorer = StepScorer.from_pretrained(path)
    (result,) = guided_search([ROWS[0]["question"]], sampler, scorer, method="beam", width=2, expansions=2)
    assert result.solutions[0].finished and result.solutions[0].step_scores


@pytest.mark.slow("runs three commands")
def test_commands_take_a_file(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(RECIPES.parent)

    def run(name, config, *options):
        yaml_file = str(RECIPES / "dial" / f"{config}.yaml")
        recipe, (arguments,) = parse(name, ["--config", yaml_file, "--output_dir", str(tmp_path / config), *options])
        return recipe.main(arguments)

    questions = ["--dataset_kwargs", json.dumps({"num_questions": 3, "seed": 1}), "--num_solutions", "2"]
    run("collect_rollouts", "collect_held_out", *questions, "--num_continuations", "3")
    rollouts = str(tmp_path / "collect_held_out")
    results = run("calibration", "calibration", "--rollouts", rollouts, "--reward_models", path)
    if "monte_carlo" in Path(path).read_text():
        assert results[path]["whole_solutions"]["brier"] == 0.0
    curves = run("best_of_n", "best_of_n", "--samples", rollouts, "--reward_models", path)
    assert set(curves["models"]) == {path}
    rows = [
        {"id": f"{index}", "problem": row["question"], "steps": right_steps(row["question"]), "label": -1}
        for index, row in enumerate(ROWS)
    ] + [{"id": "3", "problem": ROWS[0]["question"], "steps": ["1 + 1 = 3", "answer 3"], "label": 0}]
    (tmp_path / "dial.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--dataset", str(tmp_path / "dial.jsonl"), "--threshold", "0.5", "--validation_share", "null"]
    results = run("processbench", "processbench", *options, "--reward_models", path)
    assert results["models"][path]["too_long"] == 0
    small = ["--dataset_kwargs", json.dumps({"num_questions": 2, "seed": 1}), "--width", "2", "--max_steps", "2"]
    run("guided_search", "guided_search", *small, "--reward_model", path)
    assert "Thresholds: given" in capsys.readouterr().out


# Caches of scores know scorers by all their settings


def test_the_identity_has_all_settings(tmp_path):
    path = write(tmp_path, MONTE_CARLO)
    identity = scorer_file_identity(path)
    assert identity["num_continuations"] == 2 and identity["eta"] == 0.0 and identity["seed"] == 0
    assert list(identity["local_files"]) == ["0/model.safetensors"]
    commented = tmp_path / "commented.yaml"
    commented.write_text(f"# another text\n{Path(path).read_text()}seed: 0\n")
    assert scorer_file_identity(commented) == identity
    others = [{"seed": 1}, {"eta": 2.0}, {"num_continuations": 3}, {"grading": "math"}, {"separator": "\n"}]
    others += [{"sampler": {**SAMPLER, "temperature": 0.5}}, {"answers": {**QUESTIONS, "max_questions": 2}}]
    digests = {scorer_file_identity(write(tmp_path, MONTE_CARLO | other))["digest"] for other in others}
    assert len(digests - {identity["digest"]}) == len(others)
    judge = scorer_file_identity(write(tmp_path, {"scorer": "judge", "sampler": SAMPLER}))
    assert "first wrong step" in judge["prompt"] and judge["num_votes"] == 1


def test_a_password_is_not_part_of_the_identity(tmp_path):
    sampler = {"backend": "endpoint", "model_name_or_path": "m", "base_url": "http://me:passw0rd@host:8000/v1"}
    one, two = (
        scorer_file_identity(write(tmp_path, {"scorer": "judge", "sampler": {**sampler, "base_url": url}}))
        for url in (sampler["base_url"], "http://me:other@host:8000/v1")
    )
    assert "passw0rd" not in json.dumps(one) and one["digest"] != two["digest"]


def test_scores_with_other_settings_are_not_continued(tmp_path):
    solution = [{"question": ROWS[0]["question"], "steps": right_steps(ROWS[0]["question"])}]
    path = write(tmp_path, MONTE_CARLO)
    first = list(score_rows(path, solution, tmp_path / "out"))
    assert list(score_rows(path, solution, tmp_path / "out")) == first
    write(tmp_path, {**MONTE_CARLO, "num_continuations": 3})
    with pytest.raises(
        ValueError, match=r"files.num_continuations was 2 and is now 3.*expected the settings of this call"
    ):
        list(score_rows(path, solution, tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([1], "got scorer='list', expected one of monte_carlo, judge"),
        ({"scorer": "other"}, "got scorer='other', expected one of"),
        ({"scorer": ["judge"]}, r"got scorer=\['judge'\], expected one of"),
        ({**MONTE_CARLO, "eta": "zero"}, "scorer.yaml: got eta='zero', expected a number, or inf"),
        ({"scorer": "judge"}, "got no sampler, expected it for scorer='judge'"),
        ({"scorer": "monte_carlo", "sampler": SAMPLER}, "got no answers"),
        (
            {**JUDGE, "num_continuations": 3},
            "got the settings 'num_continuations', expected settings from sampler",
        ),
        ({**JUDGE, "sampler": {"model": "x"}}, "scorer.yaml: sampler: got the setting 'model'"),
        ({**MONTE_CARLO, "answers": {"dataset": "x"}}, "scorer.yaml: answers: got .*expected a file, a dataset, or a"),
    ],
)
def test_errors_name_the_file_and_the_setting(settings, message, tmp_path):
    path = write(tmp_path, settings)
    for load in (load_format, StepScorer.from_pretrained, scorer_file_identity):
        with pytest.raises(ValueError, match=message):
            load(path)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml: got no file, expected a scorer file"):
        StepScorer.from_pretrained(tmp_path / "nothing.yaml")
    (tmp_path / "damaged.yaml").write_text("scorer: [")
    with pytest.raises(ValueError, match="got a file that is not YAML"):
        load_format(tmp_path / "damaged.yaml")
    assert not is_scorer_file("http://host/scorer.yaml") and not is_scorer_file("outputs/erprm")


def test_the_shipped_file_knows_the_questions_of_the_recipes():
    scorer = StepScorer.from_pretrained(RECIPES / "dial" / "monte_carlo_scorer.yaml")
    for count, seed in ((200, 2), (100, 5)):
        row = dial.make_questions(count, seed)[-1]
        assert scorer.score([row["question"]], [[f"answer {row['answer']}"]]) == [[1.0]]
