"""Collections from the shipped policy with vLLM: the samples, resuming a killed collection, and scores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from vllm_oracles import assert_drawn_from, greedy_ids, next_token_probabilities

from erprm_trl import dial
from erprm_trl.rollouts import Prompt, Question, VLLMSampler, collect_rollouts


pytestmark = pytest.mark.slow("starts vLLM engines")


ROWS = dial.make_questions(10, seed=3)
MAX_NEW_TOKENS = 64
COLLECTION = {
    "num_solutions": 2,
    "num_continuations": 3,
    "include_question": True,
    "splitter": dial.SEPARATOR,
    "grading": "exact",
    "answer_pattern": dial.ANSWER_PATTERN,
    "chunk_size": 4,
    "store_token_ids": True,
    "show_progress": False,
}


def make_sampler():
    # Compilation takes longer than it saves here.
    engine_kwargs = {"dtype": "float32", "enforce_eager": True}
    return VLLMSampler(dial.BASE_PATH, max_new_tokens=MAX_NEW_TOKENS, engine_kwargs=engine_kwargs)


def collect(sampler, folder):
    return collect_rollouts([Question(**row) for row in ROWS], sampler, folder, **COLLECTION)


def collect_and_die(folder):
    """Kills the process when the second chunk's continuations are requested, so that no handler runs. The first chunk
    is graded in the background, and is written by then, or soon after."""
    sampler = make_sampler()
    sample, calls = sampler.sample, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            (shard,) = Path(folder).glob("rollouts-*.jsonl")
            end = time.monotonic() + 60
            while not shard.stat().st_size and time.monotonic() < end:
                time.sleep(0.05)
            os.killpg(0, signal.SIGKILL)  # also kills the engine's process
        return sample(*arguments)

    sampler.sample = dying
    collect(sampler, folder)


@pytest.fixture(scope="module")
def sampler():
    sampler = make_sampler()
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def rows(sampler, tmp_path_factory):
    """The rows of an uninterrupted collection."""
    return collect(sampler, tmp_path_factory.mktemp("straight")).rows


def test_rows_are_complete(rows):
    assert [(row.question_index, row.solution_index) for row in rows] == [(i, j) for i in range(10) for j in (0, 1)]
    for row in rows:
        assert (row.question, row.answer) == tuple(ROWS[row.question_index].values())
        assert row.sampler["backend"] == "vllm"
        assert row.num_tokens == len(row.token_ids)
        assert row.finished == (row.token_ids[-1] == dial.build_tokenizer().eos_token_id)
        assert [len(rewards) for rewards in row.prefix_rewards] == [3] * (len(row.steps) - 1)
        assert len(row.question_rewards) == 3
        # the grade equals the task's own
        stated = row.steps[-1].removesuffix(dial.SEPARATOR).split() if row.steps else []
        right = stated == ["answer", row.answer]
        assert row.outcome_reward == float(right)
    assert 0.3 < sum(row.outcome_reward for row in rows) / len(rows) < 1
    assert any(0 in rewards for row in rows for rewards in row.prefix_rewards)


def test_a_killed_and_resumed_collection_has_the_same_rows(sampler, rows, tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    killed = subprocess.run(
        [sys.executable, "-c", f"import test_collection_vllm as own; own.collect_and_die({str(tmp_path)!r})"],
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    (shard,) = tmp_path.glob("rollouts-*.jsonl")
    written = shard.read_text().splitlines()
    assert len(written) == 8  # one chunk of four questions
    resumed = collect(sampler, tmp_path).rows
    assert resumed == rows
    assert [json.loads(line) for line in written] == [row.to_json() for row in rows[:8]]
    assert shard.read_text().splitlines()[:8] == written  # kept, and not sampled again


def test_greedy_completions_equal_those_of_transformers(sampler, dial_policy, monkeypatch):
    model, tokenizer = dial_policy
    monkeypatch.setattr(sampler, "temperature", 0)
    sampled = sampler.sample([Prompt(row["question"]) for row in ROWS], 1, seed=0)
    expected = greedy_ids(model, tokenizer, [row["question"] for row in ROWS], MAX_NEW_TOKENS)
    assert [list(completion.token_ids) for (completion,) in sampled] == expected


@pytest.mark.parametrize(("temperature", "top_k"), [(2.0, None), (2.0, 6), (1.6, None)])
def test_samples_are_drawn_from_the_softmax(sampler, dial_policy, monkeypatch, temperature, top_k):
    model, tokenizer = dial_policy
    for name, value in (("temperature", temperature), ("top_k", top_k or 0), ("max_new_tokens", 1)):
        monkeypatch.setattr(sampler, name, value)
    question = "Tom dial"  # several next tokens are likely
    (completions,) = sampler.sample([Prompt(question)], 3000, seed=1)
    expected = next_token_probabilities(model, tokenizer, question, temperature, top_k)
    assert_drawn_from([completion.token_ids[0] for completion in completions], expected)
    with pytest.raises(AssertionError, match="chi-square"):  # another temperature would be detected
        assert_drawn_from(
            [completion.token_ids[0] for completion in completions],
            next_token_probabilities(model, tokenizer, question, 2 * temperature, top_k),
        )


def test_scores_equal_those_of_a_plain_forward_pass(rows, dial_scorer, dial_policy, dial_format):
    model, tokenizer = dial_policy
    solutions = [[step.removesuffix(dial.SEPARATOR).strip() for step in row.steps] for row in rows]
    scored = dial_scorer.score([row.question for row in rows], solutions)
    marks = tokenizer.convert_tokens_to_ids([dial.GOOD_MARK, dial.BAD_MARK])
    separator = tokenizer.convert_tokens_to_ids(dial.SEPARATOR)
    for row, solution, scores in zip(rows, solutions, scored, strict=True):
        text = " ".join(["check", row.question, *(f"{step} {dial.SEPARATOR}" for step in solution)])
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0][ids[0] == separator][:, marks]
        assert scores == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-5)
    assert len({round(score, 3) for scores in scored for score in scores}) > 5
