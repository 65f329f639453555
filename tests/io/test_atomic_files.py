"""Tests full and read-only disks and invalid folders. Each raises an error before the work, or loses no results."""

import importlib.util
import sys
from pathlib import Path

import pytest
from broken_disks import no_file_above, on_a_mount
from fake_sampler import FakeSampler

from erprm_trl import RolloutDataset, StepScorer, collect_rollouts
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.report import write_report
from erprm_trl.rollouts.questions import Question


QUESTIONS = [Question(f"What is {index}?", str(index % 3)) for index in range(8)]
SETTINGS = {
    "num_solutions": 2,
    "num_continuations": 3,
    "grading": "exact",
    "answer_pattern": r"answer (\d+)",
    "chunk_size": 2,
    "show_progress": False,
}


def collect(folder, sampler=None):
    return collect_rollouts(QUESTIONS, sampler or FakeSampler(), folder, **SETTINGS)


def shard_bytes(folder):
    return (folder / "rollouts-00000.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of the shard that a collection writes without errors."""
    folder = tmp_path_factory.mktemp("whole")
    collect(folder)
    return shard_bytes(folder)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_collection_resumes_after_a_full_disk(tmp_path, whole, share):
    size = int(len(whole) * share)
    with no_file_above(size), pytest.raises(OSError, match="a chunk .*All chunks before it are safe"):
        collect(tmp_path)
    assert shard_bytes(tmp_path) == whole[:size]  # a buffered file would write more after the error
    finished = len(RolloutDataset(tmp_path).rows)
    again = FakeSampler()
    collect(tmp_path, again)
    assert shard_bytes(tmp_path) == whole
    assert len(again.calls) == 2 * (4 - finished // 4)  # no finished chunk is sampled again


def test_a_collection_resumes_after_a_full_tmpfs(tmp_path, whole):
    def fill():
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(52 * 1024))
        with pytest.raises(OSError, match="No space left on device"):
            collect(tmp_path)
        ballast.unlink()
        collect(tmp_path)
        assert shard_bytes(tmp_path) == whole

    on_a_mount(tmp_path, ["-t", "tmpfs", "-o", "size=64k", "none"], fill)


def test_a_read_only_folder_raises_before_any_work(tmp_path):
    (tmp_path / "mounted").mkdir()

    def refuse():
        sampler = FakeSampler()
        with pytest.raises(PermissionError, match="No file .*another output_dir"):
            collect(tmp_path / "mounted", sampler)
        assert sampler.calls == []
        with pytest.raises(OSError, match="Read-only"):
            make_folder(tmp_path / "mounted" / "below")

    on_a_mount(tmp_path / "mounted", ["-t", "tmpfs", "-o", "ro", "none"], refuse)


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "best_of_n.json"
    replace_file(path, "old")
    with no_file_above(10), pytest.raises(OSError, match="the file was not changed.*Make room") as raised:
        replace_file(path, "new" * 100)
    assert raised.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_file(path, "new" * 100)
    assert path.read_text() == "new" * 100


def recipe(name):
    path = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module here
    spec.loader.exec_module(module)
    return module


def test_a_folder_below_a_file_raises_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "out"
    sampler = FakeSampler()
    with pytest.raises(NotADirectoryError, match=str(below)):
        collect(below, sampler)
    assert sampler.calls == []
    collect(tmp_path / "samples")
    with pytest.raises(NotADirectoryError, match=str(below)):
        write_report(tmp_path / "samples", below / "report.html")
    monkeypatch.setattr(StepScorer, "from_pretrained", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    for name in ("best_of_n", "calibration"):
        module = recipe(name)
        arguments = next(value for key, value in vars(module).items() if key.endswith("Arguments"))
        folder = {"best_of_n": "samples", "calibration": "rollouts"}[name]
        with pytest.raises(NotADirectoryError, match=str(below)):
            module.main(arguments(reward_models=["a"], output_dir=str(below), **{folder: str(tmp_path / "samples")}))


def test_a_full_disk_does_not_change_the_old_scores_and_the_old_page(tmp_path, monkeypatch):
    collect(tmp_path / "samples")
    page = write_report(tmp_path)
    scores = tmp_path / "best" / "step_scores.json"
    make_folder(scores.parent)
    scores.write_text('{"of": "an earlier run"}')
    before = {path: path.read_bytes() for path in (scores, page)}
    module = recipe("best_of_n")
    monkeypatch.setattr("erprm_trl.scripts.best_of_n.score_with_each", lambda *args, **options: {"a": [0.5] * 100})
    monkeypatch.setattr("erprm_trl.selection.selection_curves", lambda *args, **kwargs: {"models": {}})
    with no_file_above(100):
        with pytest.raises(OSError, match="step_scores.json"):
            module.main(
                module.BestOfNArguments(
                    samples=str(tmp_path / "samples"), reward_models=["a"], output_dir=str(scores.parent)
                )
            )
        with pytest.raises(OSError, match="report.html"):
            write_report(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(tmp_path.rglob("*.tmp")) == []
    write_report(tmp_path)
