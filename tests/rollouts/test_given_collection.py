"""Tests labels of given solutions, and of solutions that another policy continues."""

import json
import random
from itertools import groupby

import pytest
import zoo
from fake_sampler import FakeSampler

from erprm_trl import dial
from erprm_trl.rollouts import (
    CollectConfig,
    CollectionSettings,
    Completion,
    GivenSolution,
    Prompt,
    PromptFormat,
    Question,
    RolloutDataset,
    collect_rollouts,
    load_solutions,
)
from erprm_trl.rollouts.shards import read_chunks


SETTINGS = {
    "num_continuations": 3,
    "grading": "exact",
    "answer_pattern": r"answer (\d+)",
    "chunk_size": 2,
    "show_progress": False,
}
ROWS = [
    {"question": "2 + 3?", "answer": "5", "response": "2 + 3 = 5\nanswer 5", "id": "a", "author": "x", "correct": 1},
    {"question": "7?", "answer": "7", "response": "answer 6", "id": "b", "author": "x", "correct": True},
    {"question": "2 + 3?", "answer": "5", "response": "2 + 3 = 6\nso\nanswer 6", "id": "c", "author": "y"},
    {"question": "9?", "answer": "9", "response": " \n", "id": "d", "author": "y", "correct": False},
]  # fmt: skip


class Scripted:
    """A policy whose continuations are written by hand: one of three is 5."""

    settings = {"backend": "scripted", "max_new_tokens": 9}

    def __init__(self):
        self.prompts = []

    def sample(self, prompts, num_samples, seed):
        self.prompts += prompts
        return [[Completion(f"answer {digit}", True, 3) for digit in "567"][:num_samples] for _ in prompts]


def shard_bytes(folder):
    return (folder / "rollouts-00000.jsonl").read_bytes()


def test_rows_worked_by_hand(tmp_path):
    policy = Scripted()
    data = collect_rollouts(solutions=ROWS, completer=policy, output_dir=tmp_path, **SETTINGS)
    places = [(row.chunk, row.question_index, row.solution_index, row.solution_id) for row in data]
    assert places == [(0, 0, 0, "a"), (0, 0, 1, "c"), (0, 1, 0, "b"), (1, 2, 0, "d")]
    right, wrong, single, empty = data
    assert right.steps == ["2 + 3 = 5\n", "answer 5"] and right.prefix_rewards == [[1.0, 0.0, 0.0]]
    assert (right.outcome_reward, right.prediction, right.correct, right.metadata) == (1.0, "5", True, {"author": "x"})
    assert (right.finished, right.num_tokens, right.sampler) == (True, 0, {})
    assert wrong.prefix_rewards == [[1.0, 0.0, 0.0]] * 2 and wrong.outcome_reward == 0.0 and wrong.correct is None
    assert single.prefix_rewards == [] and single.outcome_reward == 0.0
    assert (empty.steps, empty.unusable, empty.outcome_reward) == ([], "no steps", 0.0)
    prefixes = ["2 + 3 = 5\n", "2 + 3 = 6\n", "2 + 3 = 6\nso\n"]
    assert policy.prompts == [Prompt("2 + 3?", prefix) for prefix in prefixes]
    summary = data.manifest["summary"]
    # 9 continuations, and no solution, were sampled. The source says that "answer 6" is right for 7.
    assert (summary["rollouts"], summary["solutions"], summary["unusable"]) == (9, 4, {"no steps": 1})
    assert summary["given"] == {"repeated": 0, "graded_differently": 1}
    labels = data.labels(0.0)
    assert labels["labels"] == [pytest.approx([1 / 3, 1.0]), pytest.approx([1 / 3, 1 / 3, 0.0]), [0.0]]
    assert data.solutions() == [[right, wrong], [single], [empty]]


def test_the_manifest_has_the_settings_of_both_policies(tmp_path):
    given = collect_rollouts(solutions=ROWS, completer=Scripted(), output_dir=tmp_path / "given", **SETTINGS)
    config = given.manifest["config"]
    assert (config["sampler"], config["completer"], config["rows_per_chunk"]) == ({}, Scripted.settings, "3 1")
    assert (config["num_questions"], config["num_solutions"], given.settings.continue_from) == (3, 2, "text")
    assert given.settings.chunk_sizes == [3, 1] and given.settings.has_given_solutions
    assert CollectionSettings.from_json(config).to_json() == config
    sampler = FakeSampler()
    both = collect_rollouts([Question("q", "1")], sampler, tmp_path / "both", completer=Scripted(), **SETTINGS)
    config = both.manifest["config"]
    assert (config["sampler"], config["completer"]) == (sampler.settings, Scripted.settings)
    assert "rows_per_chunk" not in config and "given" not in both.manifest["summary"]
    assert not both.settings.has_given_solutions and not both.settings.continues_own_samples
    assert len(sampler.calls) == 1  # the other policy has sampled the continuations
    same = collect_rollouts([Question("q", "1")], sampler, tmp_path / "same", completer=sampler, **SETTINGS)
    assert "completer" not in same.manifest["config"] and same.settings.continues_own_samples


def test_another_policy_continues_from_the_text_in_its_own_template(tmp_path):
    class Writer(Scripted):
        prompt_format = PromptFormat(zoo.byte_level_bpe(), "Write: {question}\n")

        def sample(self, prompts, num_samples, seed):
            return [[Completion("one. two", True, 3, (1, 2, 3))] * num_samples for _ in prompts]

    class Continuer(Scripted):
        prompt_format = PromptFormat(zoo.byte_level_bpe(), "Continue: {question}\n")

    policy = Continuer()
    data = collect_rollouts(
        [Question("q", "5")], Writer(), tmp_path, completer=policy, num_solutions=1, **{**SETTINGS, "splitter": ". "}
    )
    assert data[0].steps == ["one. ", "two"] and data.settings.continue_from == "text"
    # The space is left to the completer, whose tokens of words begin with a space.
    assert policy.prompts == [Prompt("q", "one.")]
    ids = policy.prompt_format.encode(policy.prompts[0])
    assert policy.prompt_format.tokenizer.decode(ids) == "Continue: q\none."


def test_given_steps_are_not_split_again(tmp_path):
    rows = [
        {"question": "q", "answer": "5", "steps": ["first\nand more\n", "second", "answer 5"]},
        {"question": "q", "answer": "5", "steps": ["first\nand more\n", " ", "answer 5"]},
    ]
    data = collect_rollouts(solutions=rows, completer=Scripted(), output_dir=tmp_path, **SETTINGS)
    assert [row.steps for row in data] == [
        ["first\nand more\n", "second\n", "answer 5"],
        ["first\nand more\n", " ", "answer 5"],
    ]
    assert data[0].unusable is None and len(data[0].prefix_rewards) == 2
    # There is no text to which a label of the empty step could belong.
    assert data[1].unusable == "a step without content" and data[1].prefix_rewards == []
    assert data[1].outcome_reward == 1.0 and len(data.labels(0.0)) == 1


def test_solutions_that_occur_twice_are_kept_and_counted(tmp_path):
    rows = [{**ROWS[0], "id": identifier} for identifier in "xyz"] + [{**ROWS[0], "question": "other?"}]
    for reuse, count in ((False, 4), (True, 2)):
        policy = Scripted()
        folder = tmp_path / str(reuse)
        options = {**SETTINGS, "reuse_continuations": reuse}
        data = collect_rollouts(solutions=rows, completer=policy, output_dir=folder, **options)
        assert [row.solution_id for row in data] == ["x", "y", "z", "a"]
        assert data.manifest["summary"]["given"]["repeated"] == 2
        assert len(set(map(str, policy.prompts))) == 2 and len(policy.prompts) == count * (3 if reuse else 1)


@pytest.mark.parametrize("is_given", [True, False])
def test_a_solution_of_another_policy_is_no_continuation_of_its_prefixes(tmp_path, is_given):
    class Writer(FakeSampler):
        def sample(self, prompts, num_samples, seed):
            return [[Completion("2 + 3 = 5\nanswer 5", True, 9)] for _ in prompts]

    options = {**SETTINGS, "reuse_continuations": True}
    if is_given:
        data = collect_rollouts(solutions=ROWS[:1], completer=Scripted(), output_dir=tmp_path, **options)
    else:
        questions = [Question("2 + 3?", "5")]
        options |= {"completer": Scripted(), "num_solutions": 1}
        data = collect_rollouts(questions, Writer(), tmp_path, **options)
    # One sample per call, so all three continuations are "answer 5". The solution itself would be a fourth reward.
    assert data[0].prefix_rewards == [[1.0, 1.0, 1.0]]


def ragged_rows(num_rows, seed=0):
    """Rows of questions with one to five solutions, in any order."""
    rng = random.Random(seed)
    rows = []
    for index in range(num_rows):
        question = rng.randrange(num_rows // 2)
        steps = [f"line {rng.randrange(9)} é\n" for _ in range(rng.randrange(4))]
        text = "".join(steps) + f"answer {rng.randrange(3)}"
        rows.append({"question": f"q{question}?", "answer": str(question % 3), "response": text, "id": index})
    return rows


def test_questions_with_different_numbers_of_solutions(tmp_path):
    rows = ragged_rows(40)
    data = collect_rollouts(solutions=rows, completer=FakeSampler(), output_dir=tmp_path, **SETTINGS)
    assert len(data) == 40 and sorted(row.solution_id for row in data) == list(range(40))
    for row in data:
        source = rows[row.solution_id]
        assert (row.question, row.text, row.answer) == (source["question"], source["response"], source["answer"])
        assert all(len(rewards) == 3 for rewards in row.prefix_rewards) and not row.lacks_continuations
    # Each question is one group of consecutive rows, numbered in order.
    groups = [list(group) for _, group in groupby(data, key=lambda row: row.question)]
    assert len({group[0].question for group in groups}) == len(groups) == data.settings.num_questions
    for index, group in enumerate(groups):
        assert [(row.question_index, row.solution_index) for row in group] == [(index, n) for n in range(len(group))]
        assert [row.solution_id for row in group] == sorted(row.solution_id for row in group)
    assert {len(group) for group in groups} >= {1, 2, 3}
    assert data.solutions() == groups and len(data.labels(2.0)) == 40
    assert data.settings.chunk_sizes == [sum(map(len, groups[i : i + 2])) for i in range(0, len(groups), 2)]


@pytest.mark.parametrize(
    "options", [{}, {"allocation": "adaptive", "include_question": True}], ids=["fixed", "adaptive"]
)
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, options):
    arguments = {"solutions": ragged_rows(20), **SETTINGS, **options}
    whole = collect_rollouts(completer=FakeSampler(), output_dir=tmp_path / "whole", **arguments)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "manifest.json").write_bytes((tmp_path / "whole" / "manifest.json").read_bytes())
    lines = shard_bytes(tmp_path / "whole").splitlines(keepends=True)
    for size in (0, 1, 7, len(lines) // 2, len(lines) - 1):
        (tmp_path / "cut" / "rollouts-00000.jsonl").write_bytes(b"".join(lines[:size]) + lines[size][:9])
        assert len(RolloutDataset(tmp_path / "cut")) <= size  # readable before the repair
        data = collect_rollouts(completer=FakeSampler(), output_dir=tmp_path / "cut", **arguments)
        assert shard_bytes(tmp_path / "cut") == shard_bytes(tmp_path / "whole") and data.rows == whole.rows
    # A finished folder samples nothing.
    policy = FakeSampler()
    assert collect_rollouts(completer=policy, output_dir=tmp_path / "cut", **arguments).rows == whole.rows
    assert policy.calls == []


def test_shards_of_two_processes_are_read_in_order(tmp_path):
    whole = collect_rollouts(
        solutions=ragged_rows(20), completer=FakeSampler(), output_dir=tmp_path / "whole", **SETTINGS
    )
    chunks = [rows for _, rows, _ in read_chunks(tmp_path / "whole" / "rollouts-00000.jsonl")]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "manifest.json").write_bytes((tmp_path / "whole" / "manifest.json").read_bytes())
    for rank in range(2):
        lines = [json.dumps(row.to_json()) + "\n" for rows in chunks[rank::2][::-1] for row in rows]
        (tmp_path / "two" / f"rollouts-{rank:05d}.jsonl").write_text("".join(lines))
    data = RolloutDataset(tmp_path / "two")
    assert data.rows == whole.rows and data.solutions() == whole.solutions()


def test_other_solutions_in_the_same_folder_raise(tmp_path):
    collect_rollouts(solutions=ROWS, completer=Scripted(), output_dir=tmp_path, **SETTINGS)
    before = shard_bytes(tmp_path)
    changed = [{**ROWS[0], "author": "z"}, *ROWS[1:]]
    for arguments, message in (
        ({"solutions": changed}, "questions was '.*' and is now"),
        ({"completer": FakeSampler()}, "completer.backend was 'scripted' and is now 'fake'"),
        ({"num_continuations": 2}, "num_continuations was 3 and is now 2"),
        ({"solutions": None, "questions": [Question("q", "5")], "sampler": Scripted()}, "num_questions was 3"),
    ):
        options = {"solutions": ROWS, "completer": Scripted(), **SETTINGS, **arguments}
        with pytest.raises(ValueError, match=f"(?s){message}.*another output_dir"):
            collect_rollouts(output_dir=tmp_path, **options)
    assert shard_bytes(tmp_path) == before


def test_solutions_can_be_graded_without_a_policy(tmp_path):
    solutions = load_solutions(ROWS)
    graded = collect_rollouts(
        solutions=solutions, output_dir=tmp_path / "graded", **{**SETTINGS, "num_continuations": 0}
    )
    assert [row.outcome_reward for row in graded] == [1.0, 0.0, 0.0, 0.0]
    assert graded.manifest["summary"]["rollouts"] == 0 and graded.settings.completer is None
    without = [solution._replace(answer=None) for solution in solutions]
    plain = collect_rollouts(
        solutions=without, output_dir=tmp_path / "plain", **{**SETTINGS, "num_continuations": 0, "grading": None}
    )
    assert [row.outcome_reward for row in plain] == [None] * 4 and plain[0].correct is True
    assert plain.manifest["summary"]["given"]["graded_differently"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"questions": [Question("q", "1")]},
            ValueError,
            "got questions and solutions, expected solutions",
        ),
        ({"sampler": FakeSampler()}, ValueError, "got a sampler, a completer and solutions"),
        ({"completer": None}, TypeError, "completer: got None with solutions.*num_continuations=0"),
        ({"store_token_ids": True}, ValueError, "store_token_ids: got True with solutions"),
        ({"output_dir": None}, TypeError, "output_dir: got None"),
        ({"solutions": None}, TypeError, "got no questions and no solutions"),
        ({"solutions": None, "questions": [Question("q", "1")]}, TypeError, "got no sampler and no solutions"),
        ({"solutions": []}, ValueError, "Solutions: got no rows"),
        ({"solutions": [{"question": "q", "response": "a"}]}, ValueError, "got 1 of 1 without a reference answer"),
        ({"solutions": [GivenSolution("q", "a")]}, ValueError, "got 1 of 1 without a reference answer"),
    ],
)
def test_errors_name_the_arguments_that_do_not_go_together(tmp_path, arguments, error, message):
    options = {"solutions": ROWS, "completer": Scripted(), "output_dir": tmp_path / "new", **SETTINGS}
    with pytest.raises(error, match=message):
        collect_rollouts(**{**options, **arguments})
    assert not (tmp_path / "new").exists()


def test_reasoning_of_the_completer_does_not_cut_off_given_solutions(tmp_path):
    class Thinking(Scripted):
        prompt_format = PromptFormat(zoo.byte_level_bpe(), "{question}\n<think>\n")

    # The prompt opens the completer's thinking. The given solution was written without thinking.
    data = collect_rollouts(solutions=ROWS[:1], completer=Thinking(), output_dir=tmp_path, **SETTINGS)
    assert data[0].outcome_reward == 1.0 and data.settings.reasoning is None


def small_config(tmp_path, **fields):
    """A configuration for solutions of the dial task, without the model's own solutions."""
    defaults = {
        "solutions": "erprm_trl.dial:make_solutions", "dataset_kwargs": {"num_solutions": 5, "seed": 1},
        "step_delimiter": " ки ", "output_dir": str(tmp_path), "num_continuations": 2, "splitter": dial.SEPARATOR,
        "grading": "exact", "answer_pattern": dial.ANSWER_PATTERN, "max_new_tokens": 24,
    }  # fmt: skip
    return CollectConfig(**{**defaults, **fields})


def test_the_configuration_labels_given_solutions(tmp_path):
    data = small_config(tmp_path, model_name_or_path=dial.BASE_PATH, id_column="id", chunk_size=1).run()
    source = dial.make_solutions(5, seed=1)
    assert [row.solution_id for row in data] == [row["id"] for row in source]
    for row, solution in zip(data, source, strict=True):
        assert row.steps == [f"{step} ки " for step in solution["steps"][:-1]] + solution["steps"][-1:]
        assert row.metadata == {"first_error": solution["first_error"]} and row.is_right == solution["correct"]
        assert [len(rewards) for rewards in row.prefix_rewards] == [2] * (len(row.steps) - 1)
    assert data.settings.completer["model"] == dial.BASE_PATH and data.settings.completer["max_new_tokens"] == 24
    assert data.manifest["summary"]["given"]["graded_differently"] == 0
    assert data.labels(0.0)["completions"] == [row["steps"] for row in source]


def test_the_configuration_of_a_second_policy(tmp_path):
    config = small_config(
        tmp_path,
        solutions=None,
        dataset_name="erprm_trl.dial:make_questions",
        dataset_kwargs={"num_questions": 2, "seed": 1},
        model_name_or_path=dial.BASE_PATH,
        completer_model_name_or_path=dial.BASE_PATH,
        completer_settings='{"temperature": 0.5}',
        num_solutions=1,
    )
    settings = config.run().settings
    assert (settings.sampler["temperature"], settings.completer["temperature"]) == (1.0, 0.5)
    assert settings.sampler | {"temperature": 0.5} == settings.completer and settings.continue_from == "text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_name": "questions.jsonl"}, "dataset_name, solutions: got both"),
        ({"solutions": None}, "dataset_name, solutions: got neither"),
        ({}, "model_name_or_path: got None with solutions.*--num_continuations 0"),
        ({"model_name_or_path": "a", "completer_model_name_or_path": "b"}, "got 'a' and 'b' with solutions"),
        ({"model_name_or_path": "a", "completer_backend": "vllm"}, "completer_backend: got 'vllm' without"),
        (
            {"completer_model_name_or_path": "a", "completer_settings": {"temprature": 1}},
            "got the setting 'temprature'.*Did you mean 'temperature'",
        ),
        ({"completer_model_name_or_path": "a", "completer_backend": "endpoint"}, "base_url=None with backend"),
        ({"solutions": None, "dataset_name": "q", "model_name_or_path": None}, "model_name_or_path: got None, exp"),
        ({"model_name_or_path": "a", "output_dir": None}, "output_dir: got None"),
        ({"model_name_or_path": "a", "step_delimiter": r"\n"}, "step_delimiter: got"),
    ],
)
def test_errors_of_the_configuration_name_fields_and_remedies(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **fields)


def test_the_configuration_grades_solutions_without_a_model(tmp_path):
    data = small_config(tmp_path, num_continuations=0).run()
    assert [row.is_right for row in data] == [row["correct"] for row in dial.make_solutions(5, seed=1)]
