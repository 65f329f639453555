"""Rollout folders on the Hub: uploaded, downloaded and loaded, with a local server in its place."""

import json
import shutil
from types import SimpleNamespace

import pytest
from fake_hub import fake_hub
from fake_sampler import FakeSampler

from erprm_trl import RolloutDataset, collect_rollouts
from erprm_trl.reward_model.trainer.data_setup import open_rollouts
from erprm_trl.rollouts import Completion, Question, hub


QUESTIONS = [Question(f"{number} + 1?", f"answer {number % 3}") for number in range(4)]
SETTINGS = {
    "backend": "fake",
    "model": "/srv/models/ada/policy-0.5b",
    "temperature": 1.0,
    "extra_body": {"api_key": "sk-0123456789abcdef", "prompt": "a | b"},
}


@pytest.fixture
def rollouts(tmp_path):
    """Four questions in four chunks, with continuations, and a grading function that is not imported by name."""
    return collect_rollouts(
        QUESTIONS,
        FakeSampler(SETTINGS),
        tmp_path / "rollouts",
        num_solutions=2,
        num_continuations=2,
        chunk_size=1,
        grading=lambda completion, answer: float(completion.endswith(answer)),
        show_progress=False,
    )


@pytest.fixture
def the_hub(monkeypatch, tmp_path):
    with fake_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_rollouts_are_the_same_after_upload_and_download(rollouts, the_hub):
    commit = rollouts.push_to_hub("ada/rollouts", private=True)
    assert the_hub.revision("ada/rollouts") in commit.commit_url and the_hub.private == {"ada/rollouts": True}
    assert set(the_hub.repos["ada/rollouts"]) == {"README.md", "manifest.json", "rollouts-00000.jsonl"}
    for read in (
        RolloutDataset.from_hub("ada/rollouts"),
        RolloutDataset("ada/rollouts"),
        open_rollouts("ada/rollouts", "train"),
    ):
        assert [row.steps for row in read] == [row.steps for row in rollouts]
        assert [row.prefix_rewards for row in read] == [row.prefix_rewards for row in rollouts]
        assert read.manifest["summary"] == rollouts.manifest["summary"]
        assert read.labels(eta=2.0).to_list() == rollouts.labels(eta=2.0).to_list()


def test_rollouts_are_shown_with_their_folder_and_size(rollouts):
    assert repr(rollouts) == f"RolloutDataset({str(rollouts.path)!r}, 8 solutions)"


def test_nothing_that_is_uploaded_has_a_secret_or_a_path_of_this_machine(rollouts, the_hub, tmp_path):
    rollouts.push_to_hub("ada/rollouts")
    for name, content in the_hub.files("ada/rollouts").items():
        text = content.decode()
        assert "sk-0123" not in text and "/srv" not in text and str(tmp_path) not in text, name
        assert "policy-0.5b" in text, name
    assert RolloutDataset("ada/rollouts")[0].sampler["model"] == "policy-0.5b"


def test_the_dataset_card_has_the_settings_and_its_rows_can_be_loaded(rollouts, the_hub, tmp_path):
    from datasets import load_dataset

    rollouts.push_to_hub("ada/rollouts")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in the_hub.files("ada/rollouts").items():
        (folder / name).write_bytes(content)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "datasets"))
    for row, stored in zip(rows, rollouts, strict=True):
        assert row["steps"] == stored.steps and row["prefix_rewards"] == stored.prefix_rewards
        assert row["sampler"]["temperature"] == 1.0 and row["unusable"] == stored.unusable
    card = (folder / "README.md").read_text()
    assert 'RolloutDataset("ada/rollouts")' in card and "| num_continuations | `2` |" in card
    assert "| solutions | `8` |" in card and "incomplete" not in card
    assert "a \\| b" in card


def test_the_card_names_the_policy_that_continued_given_solutions(the_hub, tmp_path):
    sampler = SimpleNamespace(
        settings={"backend": "scripted", "model": "/srv/completer-7b"},
        sample=lambda prompts, num_samples, seed: [[Completion("5", True, 1)] * num_samples for _ in prompts],
    )
    solutions = [{"question": "q", "answer": "5", "response": text} for text in ("a\n5", "b\nc\n6")]
    solutions.append({"question": "r", "answer": "5", "response": "5"})  # another number of solutions
    options = {"completer": sampler, "num_continuations": 1, "show_progress": False}
    collect_rollouts(solutions=solutions, output_dir=tmp_path / "given", **options).push_to_hub("ada/given")
    assert "| completer: model | `completer-7b` |" in the_hub.files("ada/given")["README.md"].decode()
    assert [len(rows) for rows in RolloutDataset("ada/given").solutions()] == [2, 1]


def test_an_interrupted_upload_sends_only_what_is_missing(rollouts, the_hub, monkeypatch):
    monkeypatch.setattr(hub, "SHARD_BYTES", 1)  # one shard per chunk
    the_hub.fail_after = 2
    with pytest.raises(Exception, match="rollouts-0000|403|Error while uploading"):
        rollouts.push_to_hub("ada/rollouts")
    assert len(the_hub.sent) == 2 and the_hub.repos["ada/rollouts"] == {}
    with pytest.raises(FileNotFoundError, match="not a rollout folder"):
        RolloutDataset("ada/rollouts")
    the_hub.fail_after = None
    rollouts.push_to_hub("ada/rollouts")
    assert len(the_hub.sent) == len(set(the_hub.sent)) == 4
    assert [row.steps for row in RolloutDataset("ada/rollouts")] == [row.steps for row in rollouts]


def test_shards_of_an_earlier_upload_are_replaced(rollouts, the_hub, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hub, "SHARD_BYTES", 1)
        rollouts.push_to_hub("ada/rollouts")
    assert len(the_hub.repos["ada/rollouts"]) == 6
    rollouts.push_to_hub("ada/rollouts")
    assert set(the_hub.repos["ada/rollouts"]) == {"README.md", "manifest.json", "rollouts-00000.jsonl"}


def test_a_dataset_with_missing_shards_is_refused(rollouts, the_hub, monkeypatch):
    monkeypatch.setattr(hub, "SHARD_BYTES", 1)
    rollouts.push_to_hub("ada/rollouts")
    del the_hub.repos["ada/rollouts"]["rollouts-00002.jsonl"]
    for read in (RolloutDataset, RolloutDataset.from_hub):
        with pytest.raises(ValueError, match="ada/rollouts: got 6 of 8 solutions, .*push_to_hub"):
            read("ada/rollouts")


def test_an_unfinished_collection_says_so_in_its_card(rollouts, the_hub):
    path = rollouts.path / "rollouts-00000.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    manifest = json.loads((rollouts.path / "manifest.json").read_text())
    del manifest["summary"]
    (rollouts.path / "manifest.json").write_text(json.dumps(manifest))
    RolloutDataset(rollouts.path).push_to_hub("ada/rollouts")
    assert "| incomplete | `6 of 8 solutions were collected` |" in the_hub.files("ada/rollouts")["README.md"].decode()
    assert len(RolloutDataset("ada/rollouts")) == 6


def test_names_that_are_neither_a_folder_nor_a_dataset_are_errors(the_hub, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="ada/nothing: got no such folder, .*no dataset .*Hub.*hf auth login"):
        RolloutDataset("ada/nothing")
    with pytest.raises(FileNotFoundError, match="train dataset: ada/nothing: .*not a rollout folder"):
        open_rollouts("ada/nothing", "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "nothing").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="got no manifest.json"):  # the folder is read
        RolloutDataset("ada/nothing")
    for path in (tmp_path / "missing", "./ada/other", "~/other", "name"):
        with pytest.raises(FileNotFoundError, match="got no manifest.json"):
            RolloutDataset(path)


def test_what_was_downloaded_is_read_without_the_hub(rollouts, the_hub, monkeypatch):
    import huggingface_hub

    rollouts.push_to_hub("ada/rollouts")
    assert len(RolloutDataset("ada/rollouts")) == 8
    shutil.rmtree(rollouts.path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(RolloutDataset("ada/rollouts")) == 8
