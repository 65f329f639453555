"""Trains a reward model and policies with all trackers, and checks the files that the trackers wrote."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tracked_training
from tracked_training import TOKEN
from wandb_file import read_runs


pytestmark = pytest.mark.slow("trains in processes of their own, with every tracker")


QUESTION = "dial"  # a word that is in every question, but in no key, name or step
LOSS = {"train/loss", "train/perf/tokens_per_second", "train/perf/mfu", "train/perf/peak_tflops"}
PARTS = {"train/reward_parts/step", "train/reward_parts/outcome", "train/reward_parts/kl"}
RUNS = ["erprm", "grpo", "raft"]
GUARD = {"guard/per_answer", "guard/tokens_per_step", "guard/unfinished_share", "guard/kl", "guard/outside"}
ARTIFACTS = {"config", "data", "checkpoint"}


class Trained(NamedTuple):
    folder: Path
    wandb: dict
    output: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The files of all runs. The files of a run are complete only after its process has ended."""
    folder = tmp_path_factory.mktemp("tracked")
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        **{f"WANDB_{kind}": str(folder / kind.lower()) for kind in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")},
    }
    os.makedirs(folder / "dir")
    script = tracked_training.__file__
    done = subprocess.run(
        [sys.executable, script, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(folder, read_runs(folder / "dir"), done.stderr)


def trackio_rows(trained, project):
    """History, configurations and artifacts in trackio's database."""
    with sqlite3.connect(trained.folder / "trackio" / f"{project}.db") as connection:
        history = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by id")]
        configs = [json.loads(row[0]) for row in connection.execute("select config from configs")]
        artifacts = [
            (name, {entry["path"] for entry in json.loads(manifest)})
            for name, manifest in connection.execute(
                "select name, manifest from artifacts join artifact_versions on artifacts.id = artifact_id"
            )
        ]
    return history, configs, dict(artifacts)


def tensorboard_events(trained, name):
    """All TensorBoard events of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (trained.folder / name / "runs").iterdir()
    return EventAccumulator(str(folder)).Reload()


def texts(events):
    """TensorBoard's texts, by tag."""
    return {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }


def check_clean(trained, value, question=True):
    """Checks that there is no secret, no absolute path and, outside tables, no question."""
    text = json.dumps(value, ensure_ascii=False)
    assert TOKEN not in text
    assert str(trained.folder) not in text
    assert str(Path(__file__).parents[3]) not in text
    assert str(Path.home()) not in text
    assert not question or f" {QUESTION} " not in text


def test_wandb_reward_model(trained):
    run = trained.wandb["erprm"]
    assert LOSS | {"train/num_tokens", "eval/auc_within_questions", "eval/ece"} <= run.keys
    figures = [row for row in run.history if "calibration/eval.path" in row]
    assert [row["train/global_step"] for row in figures] == [2, 4]
    (start,) = [row for row in run.history if "labels/by_position.path" in row]
    assert start["train/global_step"] == 0
    for row, key in [(start, "labels/by_position"), *((row, "calibration/eval") for row in figures)]:
        assert (run.files / row[f"{key}.path"]).read_bytes().startswith(b"\x89PNG")
    (counts,) = [row["labels/all.values"] for row in run.history if "labels/all.values" in row]
    rows = [json.loads(line) for line in (trained.folder / "rollouts" / "rollouts-00000.jsonl").open()]
    assert sum(counts) == sum(len(row["steps"]) for row in rows)


def test_wandb_table_of_solutions(trained):
    run = trained.wandb["erprm"]
    paths = [row["solutions/eval.path"] for row in run.history if "solutions/eval.path" in row]
    rows = [json.loads(line) for line in (trained.folder / "rollouts" / "rollouts-00000.jsonl").open()]
    questions = {row["question"] for row in rows}
    assert len(paths) == 2
    for path in paths:
        table = json.loads((run.files / path).read_text())
        assert table["columns"] == ["question", "steps", "lowest score"]
        assert len(table["data"]) == 3 and {row[0] for row in table["data"]} <= questions
    (files,) = [files for name, files in run.artifacts.items() if "solutionseval" in name]
    # Equal solutions with equal scores share one file.
    assert sum(name.endswith(".html") for name in files) == len({tuple(row) for row in table["data"]}) > 1


def test_wandb_policy(trained):
    run = trained.wandb["grpo"]
    assert LOSS | PARTS | GUARD | {"solutions/train.path", "completions.path"} <= run.keys
    logged = [row for row in run.history if "train/reward_parts/kl" in row]
    assert len(logged) == 2
    for row in logged:
        # beta 0.1 times the KL per token times the mean number of tokens per completion, (4 + 2 + 6 + 3) / 4
        assert row["train/reward_parts/kl"] == pytest.approx(-0.1 * row["train/kl"] * 15 / 4, abs=1e-9)
        assert row["train/reward_parts/outcome"] == row["train/rewards/answer_reward/mean"]
    assert logged[1]["train/kl"] > 0
    tables = [row for row in run.history if "solutions/train.path" in row]
    assert [row["solutions/train.nrows"] for row in tables] == [2, 2]


def test_wandb_rounds(trained):
    run = trained.wandb["raft"]
    assert LOSS | {"train/raft/round", "solutions/raft.path"} <= run.keys
    assert [row["train/raft/round"] for row in run.history if "train/raft/round" in row] == [0, 1]
    tables = [row for row in run.history if "solutions/raft.path" in row]
    assert [row["train/global_step"] for row in tables] == [0, 2]


@pytest.mark.parametrize("name", RUNS)
def test_wandb_gets_no_secrets_and_no_absolute_paths(trained, name):
    run = trained.wandb[name]
    assert run.config["hub_token"] == "<redacted>" and run.config["output_dir"] == name
    check_clean(trained, run.config)
    check_clean(trained, run.history)
    check_clean(trained, {key: sorted(files) for key, files in run.artifacts.items()})
    for path in run.files.rglob("*.table.json"):
        check_clean(trained, json.loads(path.read_text()), question=False)
    if name == "erprm":
        assert run.config["good_token"] == "✓" and run.config["_name_or_path"].endswith("base")


@pytest.mark.parametrize("name", RUNS)
def test_artifacts(trained, name):
    run = trained.wandb[name]
    files = {
        kind: run.artifacts[next(key for key in run.artifacts if key.startswith(f"{kind}-"))] for kind in ARTIFACTS
    }
    assert files["config"] == {"config.json"} and files["data"] == {"manifest.json"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files["checkpoint"]
    assert not {"training_args.bin", "optimizer.pt", "trainer_state.json"} & files["checkpoint"]
    _, _, kept = trackio_rows(trained, name)
    assert {key.split("-")[0]: paths for key, paths in kept.items()} == files
    logged = texts(tensorboard_events(trained, name))
    manifest = json.loads(logged["artifact/data/manifest.json"])
    if name == "erprm":
        assert manifest["rollouts"]["train"]["config"]["num_continuations"] == 2
        assert manifest["counts"]["train"]["kept"] == manifest["counts"]["train"]["rows"]
    check_clean(trained, manifest)
    assert json.loads(logged["artifact/config/config.json"])["hub_token"] == "<redacted>"
    assert "`checkpoint` could not be logged to tensorboard" in trained.output


@pytest.mark.parametrize("name", RUNS)
def test_trackio(trained, name):
    history, configs, _ = trackio_rows(trained, name)
    keys = {key for row in history for key in row}
    expected = {
        "erprm": {"labels/by_position", "labels/all", "calibration/eval", "solutions/eval", "eval/ece"},
        "grpo": {"solutions/train", *PARTS, *GUARD},
        "raft": {"solutions/raft", "train/raft/round"},
    }
    assert LOSS | expected[name] <= keys
    assert sum("train/loss" in row for row in history) == (2 if name == "grpo" else 4)  # two rounds are one run
    media = trained.folder / "trackio" / "media"
    for row in history:
        for key in ("labels/by_position", "calibration/eval"):
            if key in row:
                assert (media / row[key]["file_path"]).read_bytes().startswith(b"\x89PNG")
        for key in ("solutions/eval", "solutions/train", "solutions/raft"):
            if key in row:
                page = (media / row[key]["file_path"]).read_text()
                assert QUESTION in page and "background:rgb(" in page
    assert configs[0]["hub_token"] == "<redacted>"
    check_clean(trained, configs)
    check_clean(trained, [{key: row[key] for key in row if key != "completions"} for row in history])


@pytest.mark.parametrize("name", RUNS)
def test_tensorboard(trained, name):
    events = tensorboard_events(trained, name)
    tags, logged = events.Tags(), texts(events)
    expected = {"erprm": {"eval/ece", "eval/loss"}, "grpo": PARTS | GUARD, "raft": {"train/raft/round"}}
    assert LOSS | expected[name] <= set(tags["scalars"])
    if name == "erprm":
        assert {"labels/by_position", "calibration/eval"} == set(tags["images"])
        assert [event.step for event in events.Images("calibration/eval")] == [2, 4]
        assert tags["histograms"] == ["labels/all"]
    table = logged.pop({"erprm": "solutions/eval", "grpo": "solutions/train", "raft": "solutions/raft"}[name])
    assert table.startswith("| question | steps | lowest score |") and QUESTION in table
    check_clean(trained, logged)
