"""Tests collections: rows worked by hand, crashes at any moment, other settings, any number of processes."""

import functools
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace

import pytest
from fake_sampler import FakeSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from launched_collection import collect_in_processes
from zoo import load_dial_policy

from erprm_trl import dial
from erprm_trl.rollouts import (
    CollectConfig,
    Completion,
    EndpointSampler,
    Grader,
    Prompt,
    PromptFormat,
    Question,
    RolloutDataset,
    TransformersSampler,
    collect,
    collect_rollouts,
    load_solutions,
)
from erprm_trl.rollouts import dataset as rollouts_dataset
from erprm_trl.rollouts.records import RolloutRow
from erprm_trl.rollouts.shards import append_rows, read_chunks


QUESTIONS = [Question(f"q{index}?", str(index % 3)) for index in range(7)]
SETTINGS = {
    "num_solutions": 2,
    "num_continuations": 3,
    "grading": "exact",
    "answer_pattern": r"answer (\d+)",
    "chunk_size": 2,
    "show_progress": False,
}


def shard_bytes(folder):
    return (Path(folder) / "rollouts-00000.jsonl").read_bytes()


def test_a_continuation_is_graded_with_the_prefix_that_it_continues(tmp_path):
    # The answer counts only if the text before it is the complete solution.
    whole = {**SETTINGS, "answer_pattern": r"2 \+ 3 = 5\nanswer (\d+)", "include_question": True}
    data = collect_rollouts([Question("2 + 3?", "5")], Scripted(), tmp_path, **whole)
    assert data.rows[0].prefix_rewards == [[1.0, 0.0, 0.0]]
    assert data.rows[0].question_rewards == [0.0, 0.0, 0.0]


def equal_text(completion, answer, strict=True):
    """A grading function with an argument."""
    return float(completion.endswith(f"answer {answer}"))


def test_the_manifest_names_a_partial_function_and_a_resumed_run_needs_the_same(tmp_path):
    grading = {"grading": functools.partial(equal_text, strict=False)}
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **(SETTINGS | grading))
    name = f"functools.partial({__name__}:equal_text, strict=False)"
    assert data.manifest["config"]["grading"] == name
    before = shard_bytes(tmp_path)
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **(SETTINGS | grading))
    assert shard_bytes(tmp_path) == before
    with pytest.raises(ValueError, match="grading"):
        collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **(SETTINGS | {"grading": equal_text}))


class Scripted:
    """A sampler that returns solutions and continuations written by hand."""

    settings = {"backend": "scripted"}

    def __init__(self):
        self.prompts = []

    def sample(self, prompts, num_samples, seed):
        self.prompts += prompts
        if all(not prompt.prefix for prompt in prompts) and num_samples == 2:
            return [[Completion("2 + 3 = 5\nanswer 5", True, 9), Completion("", False, 1)] for _ in prompts]
        assert num_samples == 3
        return [
            [Completion("answer 5", True, 3), Completion("answer 6", True, 3), Completion("?", False, 3)]
            for _ in prompts
        ]


def test_rows_worked_by_hand(tmp_path):
    sampler = Scripted()
    data = collect_rollouts([Question("2 + 3?", "5")], sampler, tmp_path, include_question=True, **SETTINGS)
    first, second = data.rows
    assert first.steps == ["2 + 3 = 5\n", "answer 5"]
    assert (first.outcome_reward, first.prediction, first.finished) == (1.0, "5", True)
    assert first.prefix_rewards == [[1.0, 0.0, 0.0]]  # the one proper prefix
    assert first.question_rewards == second.question_rewards == [1.0, 0.0, 0.0]
    assert (second.steps, second.unusable, second.outcome_reward) == ([], "no steps", 0.0)
    # the prefix is continued unchanged, including its line break
    assert sampler.prompts[1:] == [Prompt("2 + 3?"), Prompt("2 + 3?", "2 + 3 = 5\n")]
    assert data.manifest["summary"]["unusable"] == {"no steps": 1}
    assert data.manifest["summary"]["unfinished_share"] == 0.5


def test_stop_strings_end_solutions_and_continuations(tmp_path, dial_policy):
    questions = [Question(**row) for row in dial.make_questions(3, seed=0)]
    # The solution ends before its last step, so it has no answer.
    settings = {
        **SETTINGS, "splitter": dial.SEPARATOR, "answer_pattern": dial.ANSWER_PATTERN, "store_token_ids": True,
    }  # fmt: skip
    sampler = TransformersSampler(*dial_policy, max_new_tokens=64, batch_size=16)
    plain = collect_rollouts(questions, sampler, tmp_path / "plain", **settings)
    assert "stop" not in plain.manifest["config"] and any("answer" in row.text for row in plain)
    stopped = collect_rollouts(questions, sampler, tmp_path / "stopped", stop="answer", **settings)
    assert stopped.settings.stop == ["answer"]
    for row in stopped:
        assert row.finished and "answer" not in row.text and row.outcome_reward == 0.0 and row.prediction is None
        assert len(row.token_ids) == row.num_tokens == len(row.text.split())
        assert sum(map(sum, row.prefix_rewards)) == 0.0
    with pytest.raises(ValueError, match=r"stop was \['answer'\] and is now \[\]"):
        collect_rollouts(questions, sampler, tmp_path / "stopped", **settings)


def test_errors_name_invalid_stop_strings(tmp_path):
    for bad in ("", ["a", ""], [3]):
        with pytest.raises(ValueError, match=r"stop: got .*expected non-empty strings"):
            collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, stop=bad, **SETTINGS)


class Thinking:
    """A sampler that thinks in one line and then answers. One solution never closes its thinking."""

    settings = {"backend": "thinking"}

    def __init__(self, opening="", prompt_template="{question}"):
        self.opening = opening
        self.prompt_format = PromptFormat(dial.build_tokenizer(), prompt_template)

    def sample(self, prompts, num_samples, seed):
        texts = [f"{self.opening}Is it answer 7?\nNo.\n</think>\nSo it is\nanswer 5", f"{self.opening}answer 5"]
        return [[Completion(text[len(prompt.prefix) :], True, 9) for text in texts] for prompt in prompts]


def collect_thoughts(folder, sampler, **settings):
    return collect_rollouts(
        [Question("2 + 3?", "5")], sampler, folder, **{**SETTINGS, "num_continuations": 0, **settings}
    )


def test_the_graded_part_depends_on_reasoning(tmp_path):
    def rewards(name, sampler, **settings):
        data = collect_thoughts(tmp_path / name, sampler, **settings)
        return [row.outcome_reward for row in data], data.settings.reasoning

    # with reasoning=True, the second text is unclosed thinking
    assert rewards("tags", Thinking("<think>")) == ([1.0, 0.0], None)
    assert rewards("plain", Thinking()) == ([1.0, 1.0], None)
    assert rewards("told", Thinking(), reasoning=True) == ([1.0, 0.0], True)
    assert rewards("prompt", Thinking(prompt_template="{question}\n<think>\n")) == ([1.0, 0.0], True)
    assert rewards("text", Thinking(), reasoning=False)[1] is False
    # a folder of an older release is graded as before
    manifest = tmp_path / "told" / "manifest.json"
    config = json.loads(manifest.read_text())
    del config["config"]["reasoning"]
    manifest.write_text(json.dumps(config))
    assert rewards("told", Thinking())[1] is False
    with pytest.raises(ValueError, match="reasoning was False and is now True"):
        rewards("told", Thinking(), reasoning=True)


def test_unclosed_thinking_that_the_prompt_opened_has_no_answer_steps(tmp_path):
    sampler = Thinking(prompt_template="{question}\n<think>\n")

    first, cut_off = collect_thoughts(tmp_path / "answer", sampler, steps_of="answer")
    assert len(first.steps) == 2 and cut_off.steps == [] and cut_off.unusable == "no steps"
    data = collect_thoughts(tmp_path / "both", sampler)
    assert data[1].steps == ["answer 5"] and data[1].unusable is None


def test_steps_of_the_thinking_or_the_answer(tmp_path):
    thought = ["Is it answer 7?\n", "No.\n</think>\n"]
    for steps_of, expected in (
        ("both", [*thought, "So it is\n", "answer 5"]),
        ("thinking", [thought[0], "No.\n</think>", "\nSo it is\nanswer 5"]),
        ("answer", ["".join(thought) + "So it is\n", "answer 5"]),
    ):
        data = collect_thoughts(tmp_path / steps_of, Thinking(), steps_of=steps_of)
        assert data[0].steps == expected and data[0].text == "".join(expected)
        assert data.settings.steps_of == steps_of
    with pytest.raises(ValueError, match="steps_of: got 'thoughts'"):
        collect_thoughts(tmp_path / "bad", Thinking(), steps_of="thoughts")


def test_labels_worked_by_hand(tmp_path, caplog):
    data = collect_rollouts([Question("2 + 3?", "5")], Scripted(), tmp_path, **SETTINGS)
    # one success of three: mean 1/3; eta = 2: log(1 + (e^2 - 1)/3)/2 = log(3.1296853)/2 = 0.570466; the last step is
    # the outcome
    for eta, value in ((0.0, 1 / 3), (2.0, 0.570466), (float("inf"), 1.0), (float("-inf"), 0.0)):
        labels = data.labels(eta)
        assert labels.column_names == ["prompt", "completions", "labels"]
        assert labels[0]["completions"] == ["2 + 3 = 5", "answer 5"]
        assert labels[0]["labels"] == pytest.approx([value, 1.0], abs=1e-5)
        assert len(labels) == 1  # the solution without steps is left out, which is logged
    assert "1 of 2 solutions get no labels: 1 with no steps" in caplog.text


def test_no_continuations_gives_samples_only(tmp_path):
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **{**SETTINGS, "num_continuations": 0})
    assert len(data.solutions()) == 7 and all(len(rows) == 2 for rows in data.solutions())
    with pytest.raises(ValueError, match="num_continuations=0"):
        data.labels(0.0)


def test_chunks_do_not_depend_on_earlier_chunks(tmp_path):
    whole, parts = FakeSampler(), FakeSampler()
    collect_rollouts(QUESTIONS, whole, tmp_path / "whole", **SETTINGS)
    collect_rollouts(QUESTIONS, parts, tmp_path / "parts", **SETTINGS)
    (tmp_path / "parts" / "rollouts-00000.jsonl").write_bytes(b"")
    collect_rollouts(QUESTIONS, parts, tmp_path / "parts", **SETTINGS)
    assert parts.calls == whole.calls * 2
    assert len({seed for _, _, seed in whole.calls}) == len(whole.calls)  # no two draws share a seed
    assert shard_bytes(tmp_path / "whole") == shard_bytes(tmp_path / "parts")


@pytest.mark.parametrize("allocation", ["fixed", "adaptive"])
def test_grading_in_the_background_does_not_change_the_rows(tmp_path, monkeypatch, allocation):
    settings = {**SETTINGS, "allocation": allocation, "include_question": True}
    overlapped = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "overlapped", **settings)
    monkeypatch.setattr(collect, "_may_overlap", lambda grader, policies: False)
    serial = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "serial", **settings)
    assert shard_bytes(tmp_path / "overlapped") == shard_bytes(tmp_path / "serial")
    for data in (overlapped, serial):
        assert data.manifest["summary"]["speed"].keys() == {"labels_per_hour", "sampler_idle_share"}


def test_only_graders_with_the_same_rewards_run_in_the_background():
    on_processor, on_device = SimpleNamespace(accelerators=[]), SimpleNamespace(accelerators=["cuda:0"])

    def overlaps(method, *policies):
        with Grader(method) as grader:
            return collect._may_overlap(grader, policies)

    assert overlaps("math", on_processor, None) and overlaps("exact", on_processor, on_processor)
    assert not overlaps(lambda completion, answer: 1.0, on_device, None)  # no worker can import it
    # Its time limit is in elapsed time.
    assert overlaps(equal_text, on_device, None) and overlaps(equal_text, FakeSampler(), None)
    assert not overlaps(equal_text, on_processor, None) and not overlaps(equal_text, on_device, on_processor)
    assert not collect._may_overlap(None, (on_device, None))


def test_a_finished_folder_samples_nothing(tmp_path):
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    before = shard_bytes(tmp_path), (tmp_path / "manifest.json").read_bytes()
    again = FakeSampler()
    assert len(collect_rollouts(QUESTIONS, again, tmp_path, **SETTINGS)) == 14
    assert again.calls == []
    assert before == (shard_bytes(tmp_path), (tmp_path / "manifest.json").read_bytes())


@pytest.mark.slow("collects many times")
@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_incomplete_chunk_at_the_end_is_removed(tmp_path, cut):
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    whole = shard_bytes(tmp_path)
    shard = tmp_path / "rollouts-00000.jsonl"
    shard.write_bytes(whole[: len(whole) * cut // 60])
    assert all(len(rows) <= 4 for _, rows, _ in read_chunks(shard))
    RolloutDataset(tmp_path)  # readable before the repair, complete chunks only
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    assert shard_bytes(tmp_path) == whole


def test_the_error_names_damage_in_the_middle(tmp_path):
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    shard = tmp_path / "rollouts-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:5], b'{"chunk": 2, "que\n', *lines[6:]]))
    with pytest.raises(ValueError, match="rollouts-00000.jsonl, line 6: damaged.*Cut the file off"):
        collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    shard.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(ValueError, match="chunk 1 is incomplete in the middle.*Move the file away"):
        collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)


def test_paths_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(dial.BASE_PATH, tmp_path / "policy")
    (tmp_path / "questions.jsonl").write_text(json.dumps(dial.make_questions(1, seed=0)[0]))
    settings = {"num_solutions": 1, "num_continuations": 0, "max_new_tokens": 4, "grading": "exact"}
    CollectConfig("~/policy", "~/questions.jsonl", "~/rollouts", **settings).run()
    assert len(RolloutDataset("~/rollouts")) == 1 and len(RolloutDataset(tmp_path / "rollouts")) == 1
    again = CollectConfig(Path("~/policy"), Path("~/questions.jsonl"), Path("~/rollouts"), **settings).run()
    assert again.path == tmp_path / "rollouts" and again.settings.sampler["model"] == str(tmp_path / "policy")
    for tokenizer in ("~/policy", Path("~/policy")):
        assert EndpointSampler("served", "http://localhost:1/v1", tokenizer).tokenizer.eos_token == "</s>"
    assert not (Path.cwd() / "~").exists()


@pytest.mark.slow("collects many times")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"num_continuations": 4}, "num_continuations was 3 and is now 4"),
        ({"splitter": "blank_line"}, "splitter was 'newline' and is now 'blank_line'"),
        (
            {"sampler": FakeSampler({"backend": "fake", "temperature": 0.7})},
            "sampler.temperature was 1.0 and is now 0.7",
        ),
        ({"questions": QUESTIONS[:-1]}, "num_questions was 7 and is now 6"),
    ],
)
def test_other_settings_in_the_same_folder_raise(tmp_path, change, message):
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    before = shard_bytes(tmp_path)
    arguments = {"questions": QUESTIONS, "sampler": FakeSampler(), "output_dir": tmp_path, **SETTINGS, **change}
    with pytest.raises(ValueError, match=f"(?s){message}.*another output_dir"):
        collect_rollouts(**arguments)
    assert shard_bytes(tmp_path) == before


def test_rows_stay_on_disk_in_the_order_of_the_questions(tmp_path):
    whole = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    lines = shard_bytes(tmp_path).splitlines(keepends=True)
    expected = [RolloutRow.from_json(json.loads(line)) for line in lines]
    # Like the shards of two processes with alternating chunks, the second of which died in its last chunk.
    chunks = [[line for line in lines if json.loads(line)["chunk"] == chunk] for chunk in range(4)]
    (tmp_path / "rollouts-00000.jsonl").write_bytes(b"".join(chunks[3] + chunks[0]))
    (tmp_path / "rollouts-00001.jsonl").write_bytes(b"".join(chunks[1] + chunks[2][:3]) + chunks[2][3][:20])
    data = RolloutDataset(tmp_path)
    expected = [row for row in expected if row.chunk != 2]
    assert len(data) == len(data.rows) == 10 and list(data) == list(data.rows) == expected
    assert data.rows == expected and data.rows != whole.rows and data.rows[2:7:2] == expected[2:7:2]
    assert data[-1] == data.rows[-1] == expected[-1] and data.rows[0] is not data.rows[0]
    assert data.solutions() == [expected[start : start + 2] for start in range(0, 10, 2)]
    with pytest.raises(IndexError):
        data[10]


def test_labels_are_computed_again_when_the_rows_change(tmp_path):
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    shard = tmp_path / "rollouts-00000.jsonl"
    labels = [list(row) for row in data.labels(0.0)["labels"]]
    assert [list(row) for row in data.labels(0.0)["labels"]] == labels != [list(r) for r in data.labels(2.0)["labels"]]
    flipped = re.sub(
        rb'"outcome_reward": [01]',
        lambda match: match[0][:-1] + b"%d" % (match[0][-1:] == b"0"),
        shard_bytes(tmp_path),
    )
    assert len(flipped) == len(shard_bytes(tmp_path))
    shard.write_bytes(flipped)
    again = RolloutDataset(tmp_path).labels(0.0)["labels"]
    assert [list(row) for row in again] == [[*row[:-1], 1 - row[-1]] for row in labels]


def test_labels_are_computed_again_when_their_version_changes(tmp_path, monkeypatch):
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "rollouts", **SETTINGS)
    first, again = data.labels(0.0), data.labels(0.0)
    assert first.cache_files == again.cache_files
    monkeypatch.setattr(rollouts_dataset, "LABEL_VERSION", rollouts_dataset.LABEL_VERSION + 1)
    changed = data.labels(0.0)
    assert changed.cache_files != first.cache_files
    assert changed.to_list() == first.to_list()


def test_errors_for_invalid_counts_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="got an empty sequence"):
        collect_rollouts([], FakeSampler(), tmp_path)
    with pytest.raises(ValueError, match="num_solutions: got 0, expected at least 1"):
        collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, num_solutions=0)
    with pytest.raises(FileNotFoundError, match="not a rollout folder"):
        RolloutDataset(tmp_path)
    for questions, got in (
        ("openai/gsm8k", "'openai/gsm8k'"),
        ([{"question": "q"}], "a dict as the first entry"),
        ({"train": []}, "{'train': ..}"),
        (iter(QUESTIONS), "<list_iterator.*>"),
    ):
        with pytest.raises(TypeError, match=rf"questions: got {got}, .*Pass load_questions\(questions\)"):
            collect_rollouts(questions, FakeSampler(), tmp_path)
    with pytest.raises(TypeError, match="sampler: got 'model/path', expected a sampler, such as TransformersSampler"):
        collect_rollouts(QUESTIONS, "model/path", tmp_path)
    solutions = [{"question": "q", "answer": "1", "steps": ["a", "b"]}]
    with pytest.raises(TypeError, match="completer: got 'model/path', expected a sampler"):
        collect_rollouts(None, None, tmp_path, solutions=solutions, completer="model/path")


def test_two_simultaneous_runs_in_one_folder_raise(tmp_path):
    def second_run():
        with pytest.raises(RuntimeError, match="another run is collecting into this folder"):
            collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)

    collect_rollouts(QUESTIONS[:2], FakeSampler(on_call=second_run), tmp_path, **SETTINGS)


@pytest.mark.parametrize("finished", [True, False])
def test_a_warning_if_most_solutions_are_unfinished(tmp_path, caplog, finished):
    class Sampler(FakeSampler):
        def _completion(self, rng, prefix):
            return super()._completion(rng, prefix)._replace(finished=finished)

    sampler = Sampler({"backend": "fake", "temperature": 1.0, "max_new_tokens": 8})
    collect_rollouts(QUESTIONS, sampler, tmp_path, **SETTINGS)
    assert ("100% of the solutions reached max_new_tokens=8" in caplog.text) is not finished


@pytest.mark.parametrize("shards", [2, 3])
def test_one_process_finishes_the_shards_of_several_processes(tmp_path, shards):
    """One process resumes the shards of several processes, one of which died in the middle of a chunk. The rows are
    the same."""
    whole = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "one", **SETTINGS)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "manifest.json").write_text((tmp_path / "one" / "manifest.json").read_text())
    chunks = [rows for _, rows, _ in read_chunks(tmp_path / "one" / "rollouts-00000.jsonl")]
    assert [len(rows) for rows in chunks] == whole.settings.chunk_sizes == [4, 4, 4, 2]
    for rank in range(shards):
        lines = [json.dumps(row.to_json()) + "\n" for rows in chunks[rank::shards][:1] for row in rows]
        if rank == 1:
            lines = [*lines[:2], lines[2][:20]]
        (tmp_path / "many" / f"rollouts-{rank:05d}.jsonl").write_text("".join(lines))
    assert collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "many", **SETTINGS).rows == whole.rows


def small_collection(folder, policy=None):
    sampler = TransformersSampler(*(policy or load_dial_policy()), max_new_tokens=12, batch_size=64)
    questions = [Question(**row) for row in dial.make_questions(4, seed=5)]
    return collect_rollouts(
        questions,
        sampler,
        folder,
        num_solutions=2,
        num_continuations=2,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        chunk_size=1,
        show_progress=False,
    )


def small_labelling(folder, policy=None):
    """Labels given solutions, one to three per question."""
    sampler = TransformersSampler(*(policy or load_dial_policy()), max_new_tokens=12, batch_size=64)
    return collect_rollouts(
        solutions=load_solutions(dial.make_solutions(12, seed=5), step_delimiter=f" {dial.SEPARATOR} "),
        completer=sampler,
        output_dir=folder,
        num_continuations=2,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        chunk_size=1,
        show_progress=False,
    )


@pytest.mark.slow("starts ten processes and kills them")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("collect", [small_collection, small_labelling])
def test_a_collection_killed_at_ten_random_moments_has_exactly_the_same_rows(tmp_path, dial_policy, collect):
    import torch

    torch.set_num_threads(1)  # a forked child has no other threads
    timer = signal.ITIMER_PROF
    before = sum(os.times()[:2])
    collect(tmp_path / "whole", dial_policy)
    seconds = sum(os.times()[:2]) - before
    whole = shard_bytes(tmp_path / "whole")
    rng = random.Random(0)
    folder, finished, kills = tmp_path / "0", 0, 0
    while kills < 10:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process immediately, without cleaning up
            signal.setitimer(timer, rng.uniform(0.01, seconds))
            collect(folder, dial_policy)
            os._exit(0)
        rng.random()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            assert shard_bytes(folder) == whole
            finished += 1
            folder = tmp_path / str(finished)
    collect(folder, dial_policy)
    assert shard_bytes(folder) == whole


@pytest.mark.slow("starts two or three processes")
@pytest.mark.parametrize(
    ("collect", "num_processes"), [(small_collection, 2), (small_collection, 3), (small_labelling, 2)]
)
def test_several_processes_write_the_same_rows_as_one(tmp_path, dial_policy, collect, num_processes):
    collect_in_processes(collect, tmp_path / "many", num_processes)
    many, one = RolloutDataset(tmp_path / "many"), collect(tmp_path / "one", dial_policy)
    assert many.rows == one.rows
    speed = many.manifest["summary"]["speed"]
    assert speed.keys() == one.manifest["summary"]["speed"].keys() and 0 <= speed["sampler_idle_share"] < 1


def test_collection_without_grading_and_with_token_ids(tmp_path, dial_policy):
    questions = [Question(row["question"]) for row in dial.make_questions(3, seed=5)]
    sampler = TransformersSampler(*dial_policy, max_new_tokens=30, batch_size=8)
    settings = {**SETTINGS, "num_continuations": 0, "grading": None}
    data = collect_rollouts(questions, sampler, tmp_path / "with", store_token_ids=True, **settings)
    for row in data.rows:
        assert row.outcome_reward is None and row.prediction is None and row.answer is None
        assert len(row.token_ids) == row.num_tokens
        assert (row.token_ids[-1] == sampler.tokenizer.eos_token_id) == row.finished
        text = sampler.tokenizer.decode(row.token_ids, skip_special_tokens=True)
        assert text.split() == "".join(row.steps).split()
    assert {row.finished for row in data.rows} == {True, False}
    assert data.manifest["summary"]["mean_outcome_reward"] is None
    assert collect_rollouts(questions, sampler, tmp_path / "without", **settings).rows[0].token_ids is None
    assert b"token_ids" not in shard_bytes(tmp_path / "without")
    with pytest.raises(ValueError, match="only the rewards of continuations are stored"):
        collect_rollouts(questions, sampler, tmp_path / "no", **{**settings, "num_continuations": 1})


ROWS = st.fixed_dictionaries(
    {"question": st.text(st.characters()), "steps": st.lists(st.text(st.characters(), min_size=1), max_size=3)},
    optional={"outcome_reward": st.floats(allow_nan=False), "prediction": st.none() | st.text(st.characters())},
)


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=3), max_size=3))
def test_any_model_output_is_read_back_unchanged(chunks):
    """The output includes line separators, lone surrogates and NUL."""
    written = [
        [RolloutRow(chunk=chunk, question_index=chunk, solution_index=n, **row) for n, row in enumerate(rows)]
        for chunk, rows in enumerate(chunks)
    ]
    with NamedTemporaryFile() as file:
        for rows in written:
            append_rows(file, rows)
        assert [rows for _, rows, _ in read_chunks(Path(file.name))] == written
