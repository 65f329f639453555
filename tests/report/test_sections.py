"""Pages of hand-made folders of every stage: which scores belong to which solutions, and the sections."""

import json
import re

import pytest
from report_folders import POINT, write_json, write_run, write_samples

from erprm_trl import PRMFormat
from erprm_trl.report import write_report
from erprm_trl.report.page import script_json
from erprm_trl.report.run_folder import RunFolder
from erprm_trl.report.solutions import Collection, choose_questions, gather_collections


def constant(steps, score):
    return [[[score] * count for count in counts] for counts in steps]


def gather(folder):
    run = RunFolder(folder)
    return {collection.name: collection for collection in gather_collections(run, 2.0)}, run.notes


BY_METHOD = {"best_of_n": {"1": POINT, "2": POINT}, "auc_within_questions": 0.75}
CURVES = {
    "pass": {"1": POINT, "2": POINT},
    "majority": {"1": POINT, "2": POINT},
    "models": {"m": {"min": BY_METHOD}},
}


def test_scores_find_their_solutions(tmp_path):
    """By the folder, by the name in a comparison (of a folder outside, too), or by a shape that is unique."""
    short, long = [[2, 3], [1, 2]], [[4, 1], [2, 2]]
    write_samples(tmp_path / "outside", long)
    write_samples(tmp_path / "run" / "a", short)
    write_samples(tmp_path / "run" / "b", short)
    write_samples(tmp_path / "run" / "c", [[3, 3], [3, 3]])
    write_json(tmp_path / "run" / "a" / "step_scores.json", {"same folder": constant(short, 0.1)})
    write_json(tmp_path / "run" / "link" / "step_scores.json", {"named": constant(long, 0.2)})
    write_json(tmp_path / "run" / "link" / "best_of_n.json", {**CURVES, "samples": "../../outside"})
    write_json(tmp_path / "run" / "shape" / "step_scores.json", {"shape": constant([[3, 3], [3, 3]], 0.3)})
    write_json(tmp_path / "run" / "unclear" / "step_scores.json", {"unclear": constant(short, 0.4)})
    collections, notes = gather(tmp_path / "run")
    assert {name: list(collection.scores) for name, collection in collections.items()} == {
        "a": ["same folder"],
        "c": ["shape"],
        "../outside": ["named"],
    }
    assert collections["../outside"].scores["named"][0][0] == [0.2] * 4
    assert "unclear/step_scores.json: skipped, because several collections fit these scores." in notes
    assert "b: skipped 4 solutions without scores and labels." in notes


def test_a_rounds_scores_and_metrics_are_those_of_its_refreshed_reward_model(tmp_path):
    folder = tmp_path / "raft" / "round-1"
    write_samples(folder / "samples", [[1], [1]])
    (folder / "scores.jsonl").write_text('{"step_scores": [0.5]}\n{"step_scores": [0.25]}\n')
    refresh = {"metrics": {"refresh/agreement_after": 0.875}}
    manifest = {"config": {"reward_model": "prm"}, "kept": 2, "metrics": {"raft/mean_score": 0.25}, "refresh": refresh}
    write_json(folder / "manifest.json", {**manifest, "reward_model": "raft/round-0/reward_model"})
    collections, _ = gather(tmp_path)
    scores = next(collection.scores for name, collection in collections.items() if name.endswith("samples"))
    assert scores == {"raft/round-0/reward_model": [[[0.5]], [[0.25]]]}
    page = write_report(tmp_path).read_text()
    assert "refresh agreement after" in page and "0.875" in page


def test_rounds_of_raft_and_guided_search(tmp_path):
    steps = [[1, 2], [2, 1]]
    write_samples(tmp_path / "raft" / "round-0" / "samples", steps)
    lines = [{"step_scores": step_scores} for step_scores in ([0.5], [], [0.2, 0.3], [0.9])]
    (tmp_path / "raft" / "round-0" / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {"config": {"reward_model": "/home/someone/prm"}, "kept": 2, "metrics": {"raft/mean_score": 0.25}}
    write_json(tmp_path / "raft" / "round-0" / "manifest.json", manifest)
    solution = {"text": "ab", "steps": ["a\n", "b"], "step_scores": [0.6, 0.7], "finished": True}
    search = {"question": "q", "solutions": [solution, solution], "reward": 1.0, "tokens_generated": 9}
    (tmp_path / "guided").mkdir()
    (tmp_path / "guided" / "solutions.jsonl").write_text(json.dumps(search) + "\n")
    collections, notes = gather(tmp_path)
    assert notes == []
    assert collections["raft/round-0/samples"].scores == {"/home/someone/prm": [[[0.5], []], [[0.2, 0.3], [0.9]]]}
    shown = collections["raft/round-0/samples"].to_json([0], 2.0)
    assert shown["sources"] == [{"name": "prm", "kind": "model"}]
    assert shown["questions"][0]["aggregates"][0]["min"] == [0.5, None]  # the second was not scored
    guided = collections["guided (guided search)"].to_json([0], 2.0)["questions"][0]["solutions"]
    assert [solution["outcome"] for solution in guided] == [1, None]  # only the first, the answer, is graded
    page = write_report(tmp_path).read_text()
    assert "Rounds of RAFT" in page and "0.250" in page and "/home/someone" not in page


def test_every_section_and_no_other(tmp_path):
    by_position = {"position": 1, "mean_label": 0.5, "mean_score": 0.5, "auc_can_succeed": None}
    bins = [{"count": 0, "mean_score": None, "mean_label": None}, {"count": 3, "mean_score": 0.7, "mean_label": 0.6}]
    calibration = {"eta": 2.0, "aggregation": "last", "prefixes": 3, "ece": 0.123, "bins": bins}
    write_json(tmp_path / "cal" / "calibration.json", {"m": {**calibration, "by_position": [by_position]}})
    write_json(tmp_path / "best" / "best_of_n.json", CURVES)
    figures = {"f1": POINT}
    judged = {"models": {"m": {"threshold": 0.5, "subsets": {"gsm8k": figures}, "average": figures}}}
    write_json(tmp_path / "pb" / "processbench.json", judged)
    log = [{"step": step, "loss": 1.0, "steps/per_answer": 6.0 + step} for step in (1, 2)]
    write_json(tmp_path / "policy" / "checkpoint-1" / "trainer_state.json", {"log_history": log[:1]})
    write_json(tmp_path / "policy" / "checkpoint-2" / "trainer_state.json", {"log_history": log})
    standing = {"value": 12.0, "reference": 6.0, "low": 3.0, "high": 11.0, "logs_outside": 10}
    guard = {"reason": "Farmed <steps>.", "step": 87, "last_good_checkpoint": "/home/someone/run/checkpoint-1"}
    write_json(tmp_path / "policy" / "guard.json", {**guard, "signals": {"steps/per_answer": standing}})
    write_json(tmp_path / "summary.json", {"policies": {"before": POINT}})
    page = write_report(tmp_path).read_text()
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["result", "selections", "reliability", "processbench", "policies", "training", "guard"]
    assert "m (ECE 0.123)" in page and "50.0 [40.0, 60.0]" in page and "0.500 [0.400, 0.600]" in page
    assert "Stopped at step 87." in page and "Farmed &lt;steps&gt;." in page and "/home/someone" not in page
    assert (
        page.count("<figcaption>Steps per answer <code>steps/per_answer</code></figcaption>") == 1
        and 'id="data"' not in page
    )


def test_the_noise_of_labels(tmp_path):
    """Two questions of three solutions. Each has one proper prefix, with one success of two continuations."""
    page = write_report(write_run(tmp_path / "run"), eta=0.0).read_text()
    section = page.split('<section id="noise"')[1].split("</section>")[0]
    values = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', section))
    assert values["standard error of a label"] == "0.5000"
    assert values["prefixes with a success in only one half of the continuations"] == "100.0%"
    assert values["prefixes of right solutions without a success"] == "0.0%"
    assert values["steps of wrong solutions after which the rate rises"] == "n/a"
    assert values["mean rate of the questions"] == "0.4444"  # (1 + 3 * 1) of 3 + 3 * 2 rewards
    assert section.count("<svg") == 2


def test_secrets_and_absolute_paths_stay_out(tmp_path):
    secret = "hf_" + "a" * 30
    sampler = {"model": "/home/someone/models/policy", "api_key": "s3cret", "base_url": "http://me:pass@host/v1"}
    write_samples(tmp_path / "run", [[1]], sampler={**sampler, "note": secret})
    page = write_report(tmp_path / "run").read_text()
    assert "&lt;redacted&gt;" in page and "http://host/v1" in page and "config.sampler.model" in page
    for hidden in ("/home/someone", "s3cret", "me:pass", secret, str(tmp_path)):
        assert hidden not in page


def test_small_collections_are_whole_and_questions_too():
    def collection(sizes):
        return Collection("c", [[{}] * size for size in sizes], "newline")

    assert choose_questions([collection([2] * 10), collection([3])], 9) == [[0, 3, 6], [0]]
    assert choose_questions([collection([300, 2])], 10) == [[0]]  # at least one question
    assert choose_questions([collection([1, 2, 3])], 6) == [[0, 1, 2]]


def test_data_in_a_script_has_no_markup():
    value = {"</script><!--": "a & b \u2028 \u2029 \ud800 \u0000"}
    text = script_json(value)
    assert text.isascii() and not set(text) & set("<>&") and json.loads(text) == value
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_a_reward_model_scores_the_shown_solutions(tmp_path):
    class Backend:
        prm_format, model_name, context_length, weights = PRMFormat(), "quarter", None, None

        def score(self, questions, steps, skip_too_long):
            assert skip_too_long
            return [[0.25] * len(steps_S) for steps_S in steps]

    write_samples(tmp_path / "run", [[2, 1], [3, 1], [1, 1]])
    page = write_report(tmp_path / "run", max_solutions=4, reward_models={"now": Backend()}).read_text()
    (data,) = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["collections"]
    assert data["sources"] == [{"name": "now", "kind": "model"}]
    assert [question["scores"] for question in data["questions"]] == [[[[0.25] * 2, [0.25]]], [[[0.25] * 3, [0.25]]]]
