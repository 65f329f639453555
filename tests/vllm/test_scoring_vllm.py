"""Step scores of a real vLLM equal those of the local scorer, offline and on a server."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config
from vllm_server import vllm_server
from zoo import byte_level_bpe, save_tiny, word_level

from erprm_trl import PRMFormat, StepScorer, dial
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.reward_model.scoring import EngineServerBackend, VLLMBackend, export_reward_model


pytestmark = pytest.mark.slow("starts vLLM engines")

QUESTIONS = [row["question"] for row in dial.make_questions(24, seed=3)]
STEPS = [[f"{index} + 15 = 3", "3 * 2 = 6", "answer 6"][: index % 4] for index in range(24)]
EAGER = {"enforce_eager": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped policy as a reward model, as a trainer would save it."""
    folder = tmp_path_factory.mktemp("model") / "erprm"
    AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    AutoTokenizer.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    FORMAT.save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    """The exported reward model."""
    export_reward_model(folder, folder.with_name("exported"))
    return folder.with_name("exported")


@pytest.fixture(scope="module")
def local(folder):
    return StepScorer.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def engine(exported):
    """An engine that computes at most 64 tokens of prompts at a time."""
    options = {**EAGER, "max_num_batched_tokens": 64, "enable_chunked_prefill": True}
    backend = VLLMBackend(exported, engine_kwargs=options)
    yield StepScorer.from_backend(backend)
    backend.close()


@pytest.fixture(scope="module")
def server(exported):
    """The address of a vLLM server with the exported reward model."""
    options = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    with vllm_server(exported.with_name("log"), "--model", str(exported), *options) as url:
        yield url


def assert_same(scorer, local, questions=QUESTIONS, steps=STEPS, tolerance=1e-4):
    expected = local.score(questions, steps)
    for scores, those in zip(scorer.score(questions, steps), expected, strict=True):
        assert scores == pytest.approx(those, abs=tolerance)
    return expected


def assert_same_limits(scorer, local):
    """The longest solution is scored, and a longer one is an error that names it or has no scores."""
    context = scorer.context_length
    assert context == local.context_length - 1
    (prompt,) = local.tokenizer([FORMAT.render_prompt("Tom ?")], add_special_tokens=False)["input_ids"]
    separator = local.tokenizer(FORMAT.separator, add_special_tokens=False)["input_ids"]
    longest = ["7 " * (context - len(prompt) - len(separator))]
    questions, steps = ["Tom ?"] * 3, [["answer 7"], longest, [longest[0] + "7"]]
    assert_same(scorer, local, questions[:2], steps[:2])
    with pytest.raises(ValueError, match=f"^Solution 2 has {context + 1} tokens, expected at most .* {context}"):
        scorer.score(questions, steps)
    skipped = scorer.score(questions, steps, skip_too_long=True)
    assert [len(scores) for scores in skipped] == [1, 1, 0]


def test_offline_scores_equal_local_scores(engine, local):
    expected = sum(assert_same(engine, local), [])
    assert len(expected) == 36 and max(expected) - min(expected) > 0.1
    assert [len(scores) for scores in engine.score(QUESTIONS, STEPS)] == [index % 4 for index in range(24)]
    assert engine.score(QUESTIONS, STEPS) == engine.score(QUESTIONS, STEPS)
    assert engine.score([], []) == [] and engine.score(QUESTIONS[:1], [[]]) == [[]]
    assert engine.weights is None and engine.prm_format == dataclasses.replace(FORMAT, head="token", num_labels=2)


def test_long_solutions_are_computed_in_parts_and_longer_ones_are_refused(engine, local):
    assert engine.context_length > 64
    assert_same_limits(engine, local)


def test_a_language_model_head_is_exported_to_a_temporary_folder(folder, local, caplog, monkeypatch):
    made = []

    def export(path, folder, **options):
        made.append(Path(folder))
        return export_reward_model(path, folder, **options)

    monkeypatch.setattr("erprm_trl.reward_model.scoring.vllm.export_reward_model", export)
    with caplog.at_level(logging.WARNING, "erprm_trl"):
        backend = VLLMBackend(folder, engine_kwargs=EAGER)
    assert_same(StepScorer.from_backend(backend), local)
    backend.close()
    assert f"erprm export --reward_model {folder}" in caplog.text
    assert len(made) == 1 and not made[0].exists()
    assert backend.model_name == str(folder) and backend.prm_format == FORMAT


def test_half_precision_agrees_with_local_half_precision(exported):
    backend = VLLMBackend(exported, dtype="bfloat16", engine_kwargs=EAGER)
    half = StepScorer.from_pretrained(exported, dtype="bfloat16", device="cpu")
    assert_same(StepScorer.from_backend(backend), half, tolerance=0.03)
    backend.close()


def test_a_head_with_one_logit_and_another_architecture(tmp_path):
    tokenizer = word_level()
    one_logit = dataclasses.replace(FORMAT, head="token", num_labels=1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    save_tiny(tmp_path / "one", tokenizer, head="token", initializer_range=0.3, **sizes)
    one_logit.save(tmp_path / "one")
    tokenizer = byte_level_bpe()  # AutoTokenizer reads the tokenizer of a Qwen2 model as a byte-level one
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    config.initializer_range, config.max_position_embeddings = 0.3, 512
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen2")
    tokenizer.save_pretrained(tmp_path / "qwen2")
    dataclasses.replace(FORMAT, good_token="+", bad_token="-").save(tmp_path / "qwen2")
    for name in ("one", "qwen2"):
        scorer = StepScorer.from_backend(VLLMBackend(tmp_path / name, engine_kwargs=EAGER))
        expected = assert_same(scorer, StepScorer.from_pretrained(tmp_path / name, device="cpu"))
        assert max(sum(expected, [])) - min(sum(expected, [])) > 0.05
        scorer.backend.close()


def test_scores_of_a_server_equal_local_scores(server, local):
    scorer = StepScorer.from_pretrained(server)
    assert isinstance(scorer.backend, EngineServerBackend) and scorer.backend.engine.name == "vLLM"
    assert_same(scorer, local)
    assert_same(StepScorer.from_pretrained(f"{server}/v1"), local)
    assert scorer.score([], []) == [] and scorer.score(QUESTIONS[:1], [[]]) == [[]]
    assert_same_limits(scorer, local)


def test_the_format_of_a_language_model_head_is_refused_for_a_vllm_server(server, folder):
    with pytest.raises(ValueError, match=r"vLLM server and the format of .* with head='lm', expected head='token'"):
        StepScorer.from_pretrained(server, tokenizer=folder)
    assert PRMFormat.load(folder).head == "lm"
