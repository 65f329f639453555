import json
import sys
from contextlib import contextmanager

import pytest
import torch

from erprm_trl.dial import ANSWER_PATTERN, SEPARATOR, build_tokenizer, make_questions
from erprm_trl.rollouts import Prompt, Question, TransformersSampler, VLLMSampler, collect_rollouts


ROWS = make_questions(20, seed=0)
PROMPTS = [Prompt(row["question"]) for row in ROWS]
MAX_NEW_TOKENS = 24


def save_model(folder, with_tokenizer=True, **generation_config):
    """A tiny random policy whose next word depends on all words before it, and which often stops."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    eos = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**{**eos, **generation_config})
    model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer.save_pretrained(folder)
    return model, tokenizer


@contextmanager
def vllm_sampler(folder, tokenizer=None, **engine_kwargs):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("VLLM_CPU_CI_ENV", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("HF_HUB_OFFLINE", "1"),
            ("OMP_NUM_THREADS", "1"),
        ):
            patch.setenv(name, value)
        pytest.importorskip("vllm")
        sampler = VLLMSampler(
            str(folder),
            tokenizer,
            max_new_tokens=MAX_NEW_TOKENS,
            engine_kwargs={"dtype": "float", **engine_kwargs},  # vLLM's other name of float32
        )
        try:
            yield sampler
        finally:
            sampler.engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The model, its tokenizer, and one sampler per backend."""
    folder = tmp_path_factory.mktemp("policy")
    model, tokenizer = save_model(folder)
    with vllm_sampler(folder) as sampler:
        yield model, tokenizer, sampler, TransformersSampler(model, tokenizer, max_new_tokens=MAX_NEW_TOKENS)


def assert_end_and_length(completion):
    """Each word is one token. Special tokens are not part of the text, but the policy may sample them."""
    num_words = len(completion.text.split())
    assert num_words + completion.finished <= completion.num_tokens <= MAX_NEW_TOKENS
    assert completion.finished or completion.num_tokens == MAX_NEW_TOKENS
    assert completion.text.startswith(" ") or num_words == 0
    assert "</s>" not in completion.text


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # what import does with a missing package
    with pytest.raises(ImportError, match=r"vLLM is not installed.*pip install 'erprm_trl\[vllm\]'"):
        VLLMSampler("any-model")


def test_end_tokens_and_tokenizer_that_the_engine_does_not_have(tmp_path):
    # As in chat models, an end token that is only in the generation config, and sampling defaults.
    equals = build_tokenizer().convert_tokens_to_ids("=")
    model, tokenizer = save_model(tmp_path, False, eos_token_id=[equals], do_sample=True, top_k=1)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %} answer"
    settings = {"prompt_template": "check {question}"}
    with vllm_sampler(tmp_path, tokenizer, skip_tokenizer_init=True) as sampler:
        reference = TransformersSampler(model, tokenizer, max_new_tokens=MAX_NEW_TOKENS, **settings)
        assert set(reference.eos_token_ids) == {equals, tokenizer.eos_token_id}
        sampler.prompt_format = reference.prompt_format
        sampled = sampler.sample(PROMPTS, 8, seed=0)
        for completion in sum(sampled, []):
            assert_end_and_length(completion)
            assert "=" not in completion.text
        # top_k=1 of the model is not applied, otherwise all samples would be equal
        assert len({completion.text for completion in sampled[0]}) > 1
        sampler.temperature = reference.temperature = 0
        greedy = sampler.sample(PROMPTS, 1, seed=0)
        assert greedy == reference.sample(PROMPTS, 1, seed=0)
        ids = tokenizer(f"check {ROWS[0]['question']} answer")["input_ids"]
        assert sampler.prompt_format.encode(PROMPTS[0]) == ids


def test_completions_are_in_order_and_repeatable(policy):
    _, _, sampler, _ = policy
    first = sampler.sample(PROMPTS, 3, seed=5)
    assert [len(completions) for completions in first] == [3] * len(PROMPTS)
    other = sampler.sample(PROMPTS[::-1], 2, seed=6)
    assert sampler.sample(PROMPTS, 3, seed=5) == first
    assert sampler.sample(PROMPTS[::-1], 2, seed=6) == other
    assert sampler.sample([], 3, seed=5) == []


def test_hits_of_the_prefix_cache_are_counted(policy, caplog):
    _, _, sampler, _ = policy
    caplog.set_level("INFO", "erprm_trl")
    cached, prompts = sampler.prefix_cache_counts()
    sampler.sample([Prompt("Tom " * 300), PROMPTS[0]], 4, seed=0)
    cached_now, prompts_now = sampler.prefix_cache_counts()
    short = len(sampler.prompt_format.encode(PROMPTS[0]))
    # Each of the four samples asks for its prompt. Only full blocks before the last token can come from the cache, and
    # the first sample has to compute them.
    block = sampler.engine.llm_engine.vllm_config.cache_config.block_size
    assert prompts_now - prompts == 4 * (300 + short)
    assert cached_now - cached == 3 * (299 // block * block + (short - 1) // block * block) > 0
    assert f"of {4 * (300 + short)} prompt tokens" in caplog.text
    assert sampler.accelerators == []
    # The cache is emptied before each call, so that a call does not depend on earlier ones.
    before = sampler.prefix_cache_counts()
    sampler.sample([Prompt("Tom " * 300)], 1, seed=0)
    after = sampler.prefix_cache_counts()
    assert (after[0] - before[0], after[1] - before[1]) == (0, 300)


def test_the_probabilities_of_next_tokens_are_those_of_transformers(policy):
    _, _, sampler, reference = policy
    tokens = ["answer", "=", "7"]
    measured = torch.tensor(sampler.next_token_log_probs(PROMPTS, tokens))
    assert measured.shape == (len(PROMPTS), 3) and (measured < -8).any()  # also of tokens that are not likely
    torch.testing.assert_close(
        measured, torch.tensor(reference.next_token_log_probs(PROMPTS, tokens)), atol=1e-3, rtol=0
    )
    with pytest.raises(ValueError, match="Next token: got '7 7', which the tokenizer encodes as"):
        sampler.next_token_log_probs(PROMPTS, ["7 7"])


def test_text_end_and_length(policy):
    _, _, sampler, _ = policy
    prompts = [*PROMPTS, *(Prompt(row["question"], f" 3 + 4 = 7 {SEPARATOR}") for row in ROWS)]
    completions = sum(sampler.sample(prompts, 4, seed=0), [])
    assert {completion.finished for completion in completions} == {False, True}
    for completion in completions:
        assert_end_and_length(completion)
    assert any(
        len(completion.text.split()) + 1 == completion.num_tokens for completion in completions if completion.finished
    )


def test_greedy_decoding_equals_transformers_and_is_repeatable(policy, monkeypatch):
    _, _, sampler, reference = policy
    monkeypatch.setattr(sampler, "temperature", 0)
    monkeypatch.setattr(reference, "temperature", 0)
    greedy = sampler.sample(PROMPTS, 2, seed=0)
    same = [ours == theirs for ours, theirs in zip(greedy, reference.sample(PROMPTS, 2, seed=0), strict=True)]
    assert sum(same) >= 0.9 * len(same)  # a near tie may fall either way
    assert all(len(completions) == 2 and completions[0] == completions[1] for completions in greedy)


@torch.no_grad()
def test_samples_follow_the_model(policy, monkeypatch):
    model, tokenizer, sampler, _ = policy
    monkeypatch.setattr(sampler, "max_new_tokens", 1)
    (completions,) = sampler.sample(PROMPTS[:1], 4000, seed=0)
    input_ids = tokenizer(PROMPTS[0].question, return_tensors="pt")["input_ids"]
    expected = model(input_ids).logits[0, -1].softmax(-1)
    finished = sum(completion.finished for completion in completions) / len(completions)
    assert finished == pytest.approx(expected[tokenizer.eos_token_id].item(), abs=0.03)
    for word, token in tokenizer.get_vocab().items():
        if token not in tokenizer.all_special_ids:
            share = sum(completion.text == f" {word}" for completion in completions) / len(completions)
            assert share == pytest.approx(expected[token].item(), abs=0.035), word  # over 4 standard errors


def test_samples_of_neighbouring_prompts_and_seeds_differ(policy):
    _, _, sampler, _ = policy
    # With the same prompt, equal completions would mean that the same random numbers were used.
    drawn = [*sampler.sample(PROMPTS[:1] * 8, 8, seed=0), *sampler.sample(PROMPTS[:1] * 8, 8, seed=1)]
    long = [completion.text for completions in drawn for completion in completions if completion.num_tokens > 8]
    assert len(long) > 20
    assert len(set(long)) == len(long)


def test_long_prompts(policy):
    _, _, sampler, _ = policy
    (short, cut) = sampler.sample([PROMPTS[0], Prompt("Tom " * 505)], 4, seed=0)
    assert all(completion.num_tokens <= 7 for completion in cut)  # the context ends before max_new_tokens
    with pytest.raises(ValueError, match=r"512 tokens.*context of 512.*'Tom Tom"):
        sampler.sample([PROMPTS[0], Prompt("Tom " * 512), PROMPTS[1]], 2, seed=0)
    # More tokens than the engine prefills in one step, none of them shared. Cutting a prompt in two killed vLLM's CPU
    # engine.
    many = [Prompt(f"{index // 20} {index % 20}" + " Ann" * (300 + index)) for index in range(40)]
    assert len(sampler.sample(many, 1, seed=0)) == 40
    assert sampler.sample([PROMPTS[0], Prompt("Tom " * 505)], 4, seed=0) == [short, cut]


def test_settings_are_the_effective_settings(policy):
    _, _, sampler, reference = policy
    assert sampler.settings.keys() == reference.settings.keys() - {"batch_size"}
    assert sampler.settings["backend"] == "vllm"
    assert sampler.settings["dtype"] == reference.settings["dtype"] == "float32"
    json.dumps(sampler.settings)


def test_collect_rollouts_twice(policy, tmp_path):
    _, _, sampler, _ = policy
    questions = [Question(**row) for row in ROWS[:6]]
    options = {
        "num_solutions": 2,
        "num_continuations": 3,
        "include_question": True,
        "splitter": SEPARATOR,
        "grading": "exact",
        "answer_pattern": ANSWER_PATTERN,
        "chunk_size": 4,
        "show_progress": False,
    }
    first = collect_rollouts(questions, sampler, tmp_path / "first", **options)
    sampler.sample(PROMPTS, 2, seed=3)
    second = collect_rollouts(questions, sampler, tmp_path / "second", **options)
    assert len(first.rows) == 12
    assert first.rows == second.rows
    assert any(row.prefix_rewards for row in first.rows)
    for row in first.rows:
        assert [len(rewards) for rewards in row.prefix_rewards] == [3] * max(len(row.steps) - 1, 0)
        assert len(row.question_rewards) == 3
        assert row.sampler["backend"] == "vllm"


def test_strings_that_end_a_completion(policy):
    _, tokenizer, sampler, _ = policy
    reports = []
    completions = sum(
        sampler.sample(PROMPTS, 4, seed=0, until=("=",), progress=lambda *numbers: reports.append(numbers)), []
    )
    assert not any("=" in completion.text for completion in completions)
    ended = [
        completion
        for completion in completions
        if completion.finished and tokenizer.eos_token_id not in completion.token_ids
    ]
    assert ended
    for completion in ended:
        assert completion.num_tokens == len(completion.token_ids)
        written = set(completion.token_ids) - set(tokenizer.all_special_ids)  # other tokens are not in the text
        words = [token_id for token_id in completion.token_ids if token_id in written]
        assert len(words) == len(completion.text.split())
    assert (
        sum(num_completions for num_completions, _ in reports) == len(completions)
        and sum(tokens for _, tokens in reports) > 0
    )


def test_prefixes_are_encoded_as_their_sampled_tokens(policy):
    _, _, sampler, _ = policy
    (whole,) = sampler.sample(PROMPTS[:1], 1, seed=0)[0]
    ids = whole.token_ids[:4]
    encode = sampler.prompt_format.encode
    assert encode(PROMPTS[0]._replace(prefix="other words", prefix_ids=ids)) == encode(PROMPTS[0]) + list(ids)
