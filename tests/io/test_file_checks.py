"""Tests overwritten, truncated and zeroed files. Readers recover, or raise an error with the file and the remedy."""

import json
import os
import shutil

import pytest
from broken_disks import no_file_above
from datasets import Dataset
from fake_sampler import FakeSampler

from erprm_trl import (
    ERPRMConfig,
    ERPRMTrainer,
    PRMFormat,
    RolloutDataset,
    StepScorer,
    TransformersSampler,
    collect_rollouts,
    dial,
)
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.policy import RAFTConfig, RAFTTrainer
from erprm_trl.policy.raft.policy_sampler import PolicySampler
from erprm_trl.rollouts.questions import Question


def collect(folder):
    questions = [Question(f"What is {index}?", str(index % 3)) for index in range(8)]
    settings = {"num_solutions": 2, "num_continuations": 2, "chunk_size": 2, "show_progress": False}
    pattern = r"answer (\d+)"
    return collect_rollouts(questions, FakeSampler(), folder, grading="exact", answer_pattern=pattern, **settings)


def line(**changes):
    return json.dumps({"chunk": 1, "question_index": 2, "solution_index": 0, **changes}).encode() + b"\n"


@pytest.mark.slow("collects many times")
@pytest.mark.parametrize(
    "damage",
    [
        b'{"chunk": 1, "que\n',
        b"\x00" * 300 + b"\n",
        bytes(range(1, 256)).replace(b"\n", b"") + b"\n",
        b"[1, 2]\n",
        b"7\n",
        b'"chunk"\n',
        line(chunk=99),
        line(chunk=-1),
        line(chunk="1"),
        line(question_index=None),
    ],
    ids=["cut", "zeros", "binary", "list", "number", "string", "chunk 99", "chunk -1", "chunk '1'", "no question"],
)
def test_the_error_names_the_damaged_line_of_a_shard_and_its_remedy_works(tmp_path, damage):
    rows = list(collect(tmp_path))
    shard = tmp_path / "rollouts-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:5], damage, *lines[6:]]))
    for read in (collect, RolloutDataset):
        with pytest.raises(ValueError, match="(?s)00000.jsonl, line 6: damaged.*delete"):
            read(tmp_path)
    shard.write_bytes(b"".join([*lines[:4], *lines[8:]]))
    assert collect(tmp_path).rows == rows


@pytest.mark.parametrize("tail", [b"\x00" * 5000, b"\xff\xfe" * 50, b'{"chunk": 3'])
def test_an_incomplete_line_at_the_end_of_a_shard_is_removed(tmp_path, tail):
    rows = list(collect(tmp_path))
    shard = tmp_path / "rollouts-00000.jsonl"
    whole = shard.read_bytes()
    shard.write_bytes(whole + tail)
    assert collect(tmp_path).rows == rows and shard.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b'{"config": {"num', b"[]", b"{}", b"\xff\xfe\x00garbage"])
def test_the_error_names_a_damaged_manifest_and_its_remedy_works(tmp_path, damage):
    rows = list(collect(tmp_path / "run"))
    (tmp_path / "run" / "manifest.json").write_bytes(damage)
    for read in (collect, RolloutDataset):
        with pytest.raises(ValueError, match="(?s)manifest.json: damaged .*Restore it"):
            read(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="without manifest.json, .*Restore it"):
        collect(tmp_path / "run")
    collect(tmp_path / "another")
    shutil.copy(tmp_path / "another" / "manifest.json", tmp_path / "run")
    assert collect(tmp_path / "run").rows == rows


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "prm_format.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_error_names_a_damaged_file_of_a_model(tmp_path, name, share):
    shutil.copytree(dial.BASE_PATH, tmp_path / "model")
    FORMAT.save(tmp_path / "model")
    path = tmp_path / "model" / name
    (tmp_path / "model" / "trainer_state.json").write_text('{"cut')  # a log, which no loader reads
    os.truncate(path, int(path.stat().st_size * share))
    for load in (StepScorer.from_pretrained, TransformersSampler.from_pretrained):
        with pytest.raises(ValueError, match=f"{name} is damaged .*Resume the training that saved it"):
            load(tmp_path / "model")
    if name == "prm_format.json":
        with pytest.raises(ValueError, match=r"prm_format.json: got a damaged file .*save\(folder"):
            PRMFormat.load(tmp_path / "model")


def raft(folder, scorer):
    args = RAFTConfig(
        str(folder),
        num_rounds=1,
        num_generations=2,
        max_completion_length=64,
        chunk_size=4,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        logging_steps=1,
        drop_uniform=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )
    questions = Dataset.from_list([{"question": row["question"]} for row in dial.make_questions(4, seed=1)])
    return RAFTTrainer(dial.BASE_PATH, scorer, args, train_dataset=questions)


@pytest.mark.slow("trains rounds on a full disk")
def test_raft_resumes_after_a_full_disk_and_the_error_names_damaged_files(tmp_path, monkeypatch):
    scorer = StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT, batch_size=64)
    save = PolicySampler.save

    def on_a_full_disk(self, path):
        with no_file_above(1000):
            save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(PolicySampler, "save", on_a_full_disk)
        with pytest.raises(OSError, match="round-0/policy .*RAFT resumes"):
            raft(tmp_path, scorer).train()
    folder = tmp_path / "round-0"
    finished = {name: (folder / name).read_bytes() for name in ("samples/rollouts-00000.jsonl", "picks.jsonl")}
    raft(tmp_path, scorer).train()
    assert {name: (folder / name).read_bytes() for name in finished} == finished
    weights = (folder / "policy" / "model.safetensors").read_bytes()
    for name, message in (("policy/model.safetensors", "model.safetensors is damaged"), ("manifest.json", "damaged")):
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
        with pytest.raises(ValueError, match=f"{message} .*Move .*round-0 and all later rounds away"):
            raft(tmp_path, scorer).train()
    shutil.rmtree(folder)
    raft(tmp_path, scorer).train()
    assert (folder / "policy" / "model.safetensors").read_bytes() == weights


QUESTION = {"question": "2 + 3?", "answer": "5"}
ROW = {"prompt": "2 + 3?", "completions": ["5"], "labels": [1.0]}


@pytest.mark.parametrize("name", ["nobody/no-such-model", "outputs/no-such-folder/model", "./no-such-folder"])
@pytest.mark.parametrize(
    "load",
    [
        PRMFormat.load,
        StepScorer.from_pretrained,
        TransformersSampler.from_pretrained,
        lambda name: ERPRMTrainer(name, ERPRMConfig(use_cpu=True, bf16=False), train_dataset=Dataset.from_list([ROW])),
        lambda name: RAFTTrainer(name, "erprm", RAFTConfig(use_cpu=True, bf16=False), train_dataset=[QUESTION]),
    ],
    ids=["format", "scorer", "sampler", "reward model trainer", "RAFT"],
)
def test_the_error_names_a_model_that_cannot_be_found(load, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reason = "and no model of this name .* Check the spelling" if name.startswith("nobody") else "expected a folder"
    with pytest.raises(OSError, match=rf"no-such-.*: got no folder, {reason}") as caught:
        load(name)
    assert "Repo id must" not in str(caught.value)
