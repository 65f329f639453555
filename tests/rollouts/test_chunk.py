"""Tests from which tokens prefixes are continued."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import zoo

from erprm_trl.rollouts import Completion, Prompt, PromptFormat, Question, TransformersSampler, collect_rollouts
from erprm_trl.rollouts.sampling.base import decode_continuation


QUESTIONS = [Question("7 + 15?", "22"), Question("3 €?", "3")]
SETTINGS = {
    "num_solutions": 4,
    "num_continuations": 2,
    "grading": "exact",
    "splitter": "a",  # a random policy writes few line feeds
    "chunk_size": 1,
    "show_progress": False,
}


class Reading(TransformersSampler):
    """Records the token ids of all prompts."""

    def sample(self, prompts, *args, **kwargs):
        self.read += [(prompt.prefix, self.prompt_format.encode(prompt)) for prompt in prompts]
        return super().sample(prompts, *args, **kwargs)


@pytest.fixture(scope="module")
def sampler():
    """A random policy. Its tokens differ from the tokens that a tokenizer would give for the same text."""
    tokenizer = zoo.byte_level_bpe()
    model = zoo.tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    sampler = Reading(model, tokenizer, max_new_tokens=40)
    sampler.read = []
    return sampler


def config_of(folder):
    return json.loads(Path(folder, "manifest.json").read_text())["config"]


def continued(sampler, folder, **settings):
    """The rows, and the tokens that the policy read for each of their prefixes."""
    sampler.read.clear()
    rows = collect_rollouts(QUESTIONS, sampler, folder, store_token_ids=True, **{**SETTINGS, **settings}).rows
    return rows, [entry for entry in sampler.read if entry[0]]


@pytest.mark.parametrize("reuse", [False, True])
def test_prefixes_are_continued_from_the_sampled_tokens(sampler, tmp_path, reuse):
    rows, read = continued(sampler, tmp_path, reuse_continuations=reuse)
    assert config_of(tmp_path)["continue_from"] == "tokens"
    encode, tokenizer = sampler.prompt_format.encode, sampler.tokenizer
    expected, kinds = [], Counter()
    for row in rows:
        opening = encode(Prompt(row.question))
        for num_steps in range(1, len(row.steps)):
            prefix = row.prefix(num_steps)
            beginnings = [row.token_ids[:count] for count in range(len(row.token_ids) + 1)]
            texts = [decode_continuation(tokenizer, opening, ids) for ids in beginnings]
            ids = next((ids for ids, text in zip(beginnings, texts, strict=True) if text == prefix), None)
            # If a token contains the end, its part of the prefix is encoded again, and the tokens before it are kept.
            if ids is None:
                first = next(count for count, text in enumerate(texts) if text.startswith(prefix))
                end = prefix[len(texts[first - 1]) :]
                ids = beginnings[first - 1] + tokenizer(end, add_special_tokens=False)["input_ids"]
                kinds["end encoded"] += 1
            assert decode_continuation(tokenizer, opening, ids) == prefix
            expected.append((prefix, opening + ids))
            kinds["other than the text's"] += opening + ids != encode(Prompt(row.question, prefix))
    assert len(expected) > kinds["end encoded"] > 2 and kinds["other than the text's"] > len(expected) / 2
    if reuse:  # each distinct prefix twice, one sample per call
        assert sorted(read) == sorted(2 * expected)
    else:
        assert read == expected


def test_a_collection_of_an_older_release_continues_from_texts(sampler, tmp_path):
    continued(sampler, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["config"].pop("continue_from") == "tokens"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shard = tmp_path / "rollouts-00000.jsonl"
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:4]))  # the first question's rows
    rows, read = continued(sampler, tmp_path)
    assert "continue_from" not in config_of(tmp_path)
    expected = [
        (row.prefix(num_steps), sampler.prompt_format.encode(Prompt(row.question, row.prefix(num_steps))))
        for row in rows[4:]
        for num_steps in range(1, len(row.steps))
    ]
    assert read == expected and len(read) > 4


class WithoutIds:
    """A sampler that returns no token ids, as some servers do."""

    settings = {"backend": "fake"}

    def __init__(self):
        self.prompt_format = PromptFormat(zoo.byte_level_bpe())
        self.prompts = []

    def sample(self, prompts, num_samples, seed):
        self.prompts += prompts
        return [[Completion("b a c", True, 3)] * num_samples for _ in prompts]


def test_solutions_without_ids_are_continued_from_their_text(tmp_path):
    sampler = WithoutIds()
    collect_rollouts(QUESTIONS[:1], sampler, tmp_path, **SETTINGS)
    assert set(sampler.prompts) == {Prompt("7 + 15?"), Prompt("7 + 15?", "b a")}
