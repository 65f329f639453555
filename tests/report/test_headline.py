"""The first screen: the best trained model, the verdict, the numbers and the chart of every kind of run."""

import json
import re

import pytest
from report_folders import POINT, Reading, write_json, write_run, write_samples

from erprm_trl.report import write_report
from erprm_trl.report.comparisons import comparisons, first_source, is_trained, ranked_models
from erprm_trl.report.headline import make_headline
from erprm_trl.report.metrics import change, is_shown, title_and_unit
from erprm_trl.report.run_folder import RunFolder
from erprm_trl.report.solutions import compare_collections, gather_collections


def point(mean, low=None, high=None):
    return {"mean": mean, "low": mean - 0.02 if low is None else low, "high": mean + 0.02 if high is None else high}


def curves(**best_of_8):
    """A comparison of reward models by their best-of-8, where a single solution has 0.4 and a majority vote 0.5."""
    models = {
        name.replace("_", " "): {
            "min": {"best_of_n": {"1": point(0.4), "8": accuracy}, "auc_within_questions": 0.5 + accuracy["mean"] / 2}
        }
        for name, accuracy in best_of_8.items()
    }
    pass_at_n = {"1": point(0.4), "8": point(0.9)}
    return {"pass": pass_at_n, "majority": {"1": point(0.4), "8": point(0.5)}, "models": models}


def headline(folder):
    run = RunFolder(folder)
    collections = gather_collections(run, 2.0)
    written = list(comparisons(run))
    return make_headline(run, collections, "min", written, [] if written else compare_collections(collections))


def values(folder):
    return [number.value for number in headline(folder).numbers]


def log(**metrics):
    """A log of ten entries, each metric going from its first value to its last in equal parts."""
    return [
        {"step": step, **{name: first + (last - first) * step / 9 for name, (first, last) in metrics.items()}}
        for step in range(10)
    ]


def test_the_best_trained_model_is_shown_first(tmp_path):
    comparison = curves(base__not_trained=point(0.9), eta_0=point(0.6), eta_2=point(0.7))
    comparison["models"] = {name.replace("  ", ", "): model for name, model in comparison["models"].items()}
    assert list(comparison["models"]) == ["base, not trained", "eta 0", "eta 2"]
    write_samples(tmp_path / "samples", [[1, 1]])
    scores = {name: [[[0.5], [0.5]]] for name in comparison["models"]}
    write_json(tmp_path / "samples" / "step_scores.json", scores)
    write_json(tmp_path / "best_of_n.json", comparison)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    (collection,) = json.loads(Reading(page).data)["collections"]
    assert collection["sources"][collection["first"]]["name"] == "eta 2"
    assert re.findall(r'<section id="(\w+)"', page)[:2] == ["result", "solutions"]
    assert "the best of 8 solutions, chosen by “eta 2”, is right for 70.0% of the questions" in page
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>', page)
    assert rows == ["eta 2", "eta 0", "base, not trained"]


@pytest.mark.parametrize(("low", "vote"), [(0.65, "more than a majority vote."), (0.5, "(the intervals overlap).")])
def test_a_majority_vote_is_beaten_only_beyond_the_intervals(tmp_path, low, vote):
    write_samples(tmp_path / "samples", [[1, 1]])
    write_json(tmp_path / "best_of_n.json", curves(eta_2=point(0.7, low)))
    assert vote in " ".join(headline(tmp_path).remarks)


def test_names_and_places():
    assert not is_trained("Base (untrained)") and not is_trained("base, not trained") and is_trained("restrained")
    names = ["base, not trained", "a", "b", "c"]
    assert first_source(names, []) == 1 and first_source(names, ["base, not trained", "c", "a"]) == 3
    assert first_source(["base, not trained"], []) == 0 and first_source([], ["a"]) == 0
    assert first_source(names, ["a", "b", "a"]) == 1
    equal = {"min": {"best_of_n": {1: POINT}, "auc_within_questions": None}}
    better = {"last": {"best_of_n": {1: POINT}, "auc_within_questions": 0.6}}
    assert ranked_models({"pass": {1: POINT}, "models": {"a": equal, "b": better, "c": {}}}, "min") == ["b", "a"]


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        (point(0.7), "Yes: the best of 8 solutions, chosen by “prm”, is right for 70.0% of the questions, a single"),
        (point(0.45, 0.41, 0.49), "Perhaps, as the 95% intervals overlap: the best of 8"),
        (point(0.4), "No: the best of 8"),
        (point(0.3), "No: the best of 8"),
    ],
)
def test_a_comparison(tmp_path, best, verdict):
    write_json(tmp_path / "curves.json", curves(prm=best))
    screen = headline(tmp_path)
    assert screen.verdict.startswith(verdict) and screen.drawing is not None
    assert [number.value for number in screen.numbers] == [
        f"40.0% → {100 * best['mean']:.1f}%",
        "50.0%",
        f"{0.5 + best['mean'] / 2:.2f}",
    ]
    assert screen.numbers[1].detail == "95% interval: 48.0 to 52.0%"
    assert ("more than" if best["mean"] > 0.5 else "not more than") in screen.remarks[0]


def test_scores_without_a_comparison_are_compared(tmp_path):
    """One of three solutions is right, and the first model scores it highest: 2 of the 3 pairs hold it."""
    screen = headline(write_run(tmp_path))
    assert [number.value for number in screen.numbers[:2]] == [
        "33.3% → 66.7%",
        "33.3%",
    ]
    assert "chosen by “erprm”" in screen.verdict


def test_policies_before_and_after(tmp_path):
    write_json(tmp_path / "summary.json", {"policies": {"before": point(0.4), "raft": point(0.5), "ppo": point(0.6)}})
    history = log(**{"steps/accuracy": (0.4, 0.6), "steps/per_answer": (5.0, 6.0), "kl": (0.0, 0.1), "loss": (0, 0)})
    write_json(tmp_path / "ppo" / "trainer_state.json", {"log_history": history})
    screen = headline(tmp_path)
    assert screen.verdict.startswith("Yes: the policy ppo answers right for 60.0% of the questions, the policy before")
    assert [number.value for number in screen.numbers] == ["40.0% → 60.0%", "5.056 → 5.944", "0.006 → 0.094"]
    write_json(tmp_path / "curves.json", curves(prm=point(0.7)))
    assert "Policies: Yes: the policy ppo" in headline(tmp_path).remarks[0]


def test_a_policy_run(tmp_path):
    metrics = {"steps/accuracy": (0.0, 0.9), "reward": (0.0, 0.45), "steps/per_answer": (5, 5), "kl": (0.0, 0.9)}
    write_json(tmp_path / "trainer_state.json", {"log_history": log(**metrics)})
    assert headline(tmp_path).verdict == "Yes: the share of right answers rose, 5.0% → 85.0%."
    assert values(tmp_path) == ["5.0% → 85.0%", "5.000 → 5.000", "0.050 → 0.850"]  # means of two values at each end
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == ["result", "training", "guard"]
    assert "training step" in page and "nats per token" in page and 'id="data"' not in page
    write_json(tmp_path / "guard.json", {"reason": "Steps are farmed.", "step": 7, "signals": {}})
    assert headline(tmp_path).verdict == "No: the guard stopped the run at step 7. Steps are farmed."


def test_a_policy_run_without_graded_answers_and_raft(tmp_path):
    write_json(tmp_path / "grpo" / "trainer_state.json", {"log_history": log(reward=(0.9, 0.0), kl=(0, 0.9))})
    assert headline(tmp_path / "grpo").verdict == "No: the mean reward did not rise, 0.850 → 0.050."
    raft = log(**{"raft/accuracy": (0.0, 0.9), "raft/steps_per_answer": (4.0, 4.0), "raft/picked_score": (0.0, 0.9)})
    write_json(tmp_path / "raft" / "trainer_state.json", {"log_history": raft})
    assert values(tmp_path / "raft") == ["5.0% → 85.0%", "4.000 → 4.000", "0.050 → 0.850"]


def test_training_alone(tmp_path):
    history = log(loss=(0.9, 0.0), brier=(0.45, 0.0), auc_within_questions=(0.0, 0.9), grad_norm=(1, 2))
    write_json(tmp_path / "eta 0" / "trainer_state.json", {"log_history": history})
    worse = log(loss=(0.0, 0.9), brier=(0.0, 0.45), auc_within_questions=(0.5, 0.5))
    write_json(tmp_path / "eta 2" / "trainer_state.json", {"log_history": worse})
    screen = headline(tmp_path)
    assert screen.verdict == (
        "Yes: on the training batches, the loss went from 0.850 to 0.050, the Brier score went from 0.425 to 0.025 "
        "and the AUC within questions went from 0.050 to 0.850."
    )
    assert screen.remarks[0] == "Numbers of eta 0, the best of 2 trainings."
    assert headline(tmp_path / "eta 2").verdict.startswith("No: ")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == ["result", "training"]
    assert page.count("first → last") == 3 and "more metrics" in page
    held_out = [{"step": step, "eval_loss": 1.0 - step / 4, "loss": step} for step in range(3)]
    write_json(tmp_path / "held out" / "prm_format.json", {})
    write_json(tmp_path / "held out" / "trainer_state.json", {"log_history": held_out})
    assert headline(tmp_path / "held out").verdict == "Yes: on held-out data, the loss went from 1.000 to 0.500."


def test_the_other_kinds(tmp_path):
    figures = {"f1": point(0.5), "erroneous": point(0.4), "correct": point(0.8)}
    judged = {"models": {"a": {"threshold": 0.5, "subsets": {"gsm8k": figures}, "average": figures}}}
    write_json(tmp_path / "judged" / "processbench.json", judged)
    assert values(tmp_path / "judged") == ["50.0%", "40.0%", "80.0%"]
    write_samples(tmp_path / "samples", [[1, 2], [3, 1]])
    assert headline(tmp_path / "samples").verdict == "No reward model has been evaluated yet."
    assert values(tmp_path / "samples") == ["4"]
    write_json(tmp_path / "other" / "prm_format.json", {"head": "lm"})
    assert headline(tmp_path / "other") is None
    assert re.findall(r'<section id="(\w+)"', write_report(tmp_path / "other").read_text()) == ["manifest"]


def test_a_log_of_one_entry_makes_no_section(tmp_path):
    write_json(tmp_path / "trainer_state.json", {"log_history": [{"step": 1, "loss": 1.0}]})
    with pytest.raises(FileNotFoundError, match="nothing to show"):
        write_report(tmp_path)


def test_metrics():
    history = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": float("nan")}, {"loss": None}, {"step": 3, "loss": 2.0}]
    assert change(history, "kl", "loss") == ("loss", 4.0, 2.0) and change(history[:3], "loss") is None
    assert title_and_unit("eval_brier") == ("Brier score, lower is better, held-out data", "Brier score")
    assert title_and_unit("eval_new/metric") == ("eval_new/metric", "value")
    assert is_shown("loss") and not any(map(is_shown, ("epoch", "train_loss", "eval_runtime", "x_per_second")))


def test_names_of_models_and_policies_are_text(tmp_path):
    hostile = "<script>$x_{$\\frac"
    write_json(tmp_path / "b" / "summary.json", {"policies": {hostile: point(0.4), hostile * 9: point(0.5)}})
    write_json(tmp_path / "a" / "curves.json", curves(**{hostile: point(0.7)}))
    for folder in (tmp_path / "a", tmp_path / "b"):
        page = write_report(folder).read_text(encoding="utf-8")
        assert "<script>$" not in page and "&lt;script&gt;$x" in page
