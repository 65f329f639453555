"""Commands that evaluate solutions made elsewhere, as a user runs them, with a reward model that was not trained."""

import json

import pytest
from recipe_runs import save_base_as_reward_model

from erprm_trl.scripts import best_of_n, calibrate, processbench
from erprm_trl.scripts.candidates import splitter_of


# Moves of a dial: Tom's dial ends at 9, Ann's at 2.
SOLUTIONS = [
    ("Tom dial 7 . right 2 . ?", "9", ["7 + 2 = 9 ки answer 9 ки", "7 + 2 = 8 ки answer 8 ки"]),
    ("Ann dial 4 . left 2 . ?", "2", ["4 - 2 = 1 ки answer 1 ки", "4 - 2 = 2 ки answer 2 ки", "answer 2 ки"]),
]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return save_base_as_reward_model(tmp_path_factory.mktemp("model") / "prm")


@pytest.fixture
def listed(tmp_path):
    """A list of solutions per row, with answers."""
    path = tmp_path / "listed.jsonl"
    rows = [{"question": q, "answer": answer, "responses": texts} for q, answer, texts in SOLUTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def single(tmp_path):
    """One solution per row, which says whether it is correct."""
    path = tmp_path / "single.jsonl"
    rows = [
        {"question": q, "response": text, "correct": text.endswith(f"answer {answer} ки")}
        for q, answer, texts in SOLUTIONS
        for text in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_exactly_one_source_is_needed(tmp_path):
    for sources in ({}, {"samples": "a", "solutions": "b"}):
        arguments = best_of_n.BestOfNArguments(reward_models=["m"], output_dir=str(tmp_path), **sources)
        with pytest.raises(ValueError, match="expected exactly one of them. Pass --samples FOLDER .*--solutions FILE"):
            best_of_n.main(arguments)


def test_questions_with_few_solutions_limit_n_with_a_warning(caplog):
    assert best_of_n._usual_ns([8, 8, 8]) == [1, 2, 4, 8] and not caplog.records
    assert best_of_n._usual_ns([16, 3, 16, 3]) == [1, 2]
    assert "2 of 4 questions have only 3 solutions, and others have up to 16" in caplog.text


def test_the_splitter_of_a_scorer_file_is_used_without_other_models(tmp_path, reward_model):
    path = tmp_path / "judge.yaml"
    path.write_text("scorer: judge\nsampler: {model_name_or_path: m}\nsplitter: blank_line\n")
    assert splitter_of([str(path)]) == "blank_line" and splitter_of([]) == "newline"
    assert splitter_of([str(path), reward_model]) == "ки"


@pytest.mark.slow("scores with a model")
def test_best_of_n_gives_the_same_curves_for_lists_and_single_solutions(
    tmp_path, reward_model, listed, single, capsys
):
    curves = []
    for source, options in ((listed, {"grading": "exact", "answer_pattern": r"answer (\d+)"}), (single, {})):
        folder = tmp_path / f"best-{len(curves)}"
        arguments = best_of_n.BestOfNArguments(
            reward_models=[reward_model], output_dir=str(folder), solutions=source, **options
        )
        curves.append(best_of_n.main(arguments))
        assert {path.name for path in folder.iterdir()} == {
            "best_of_n.json",
            "best_of_n.png",
            "candidates",
            "step_scores.json",
        }
        assert json.loads((folder / "best_of_n.json").read_text())["samples"] == "candidates"
        assert [len(scores_N) for scores_N in json.loads((folder / "step_scores.json").read_text())[reward_model]] == [
            2,
            3,
        ]
    assert curves[0]["pass"] == curves[1]["pass"]
    assert curves[0]["pass"][1]["mean"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert curves[0]["models"] == curves[1]["models"]
    assert "best of 2 by" in capsys.readouterr().out


@pytest.mark.slow("scores with a model")
def test_calibration_of_whole_solutions(tmp_path, reward_model, single, capsys):
    arguments = calibrate.CalibrationArguments(
        reward_models=[reward_model], output_dir=str(tmp_path / "calibration"), solutions=single
    )
    result = calibrate.main(arguments)[reward_model]
    assert (result["unit"], result["prefixes"], result["questions"]) == ("solution", 5, 2)
    assert result["mean_label"] == pytest.approx(3 / 5)
    assert result["brier"]["mean"] == pytest.approx(result["whole_solutions"]["brier"])
    assert "5 solutions of 2 questions, rewards, scores by last" in capsys.readouterr().out
    assert (tmp_path / "calibration" / "calibration.png").stat().st_size > 5000


@pytest.mark.slow("scores with a model")
def test_processbench_on_solutions_with_other_columns(tmp_path, reward_model):
    rows = [
        {
            "prompt": f"Tom dial {start} . right 2 . ?",
            "completions": f"{start} + 2 = {start + end}ки answer {start + end}",
            "labels": [end == 2, end == 2],
        }
        for start in range(4)
        for end in (1, 2)
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = processbench.main(
        processbench.ProcessBenchArguments(
            reward_models=[reward_model],
            output_dir=str(tmp_path / "processbench"),
            dataset=str(path),
            problem_column="prompt",
            steps_column="completions",
            label_column="labels",
            splitter="ки",
            threshold=0.5,
        )
    )
    figures = results["models"][reward_model]["subsets"]["judged"]
    assert (figures["num_erroneous"], figures["num_correct"]) == (4, 4)
