"""Tests the samples of the transformers sampler, and that they do not depend on batches or earlier calls."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from erprm_trl import dial
from erprm_trl.rollouts import Prompt, PromptFormat, TransformersSampler
from erprm_trl.rollouts.sampling.base import decode_continuation


QUESTIONS = [row["question"] for row in dial.make_questions(5, seed=9)]


def sampler(policy, **options):
    return TransformersSampler(*policy, **{"max_new_tokens": 12, "batch_size": 16, **options})


PROMPTS = [*(Prompt(question) for question in QUESTIONS), Prompt(QUESTIONS[0], " 7 + 1 = 8 ки")]


def test_samples_are_repeatable_and_do_not_change_the_global_state(dial_policy):
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    own = dial_policy[0].generation_config
    first = sampler(dial_policy).sample(PROMPTS, 3, seed=1)
    assert torch.equal(torch.rand(1), expected_next)
    assert dial_policy[0].generation_config is own
    assert first == sampler(dial_policy).sample(PROMPTS, 3, seed=1)
    assert first != sampler(dial_policy).sample(PROMPTS, 3, seed=2)
    assert [len(samples) for samples in first] == [3] * 6
    for prompt, samples in zip(
        PROMPTS[:5], first[:5], strict=True
    ):  # in the prompts' order: each begins at its own dial
        start = prompt.question.split()[2]
        assert all(completion.text.split()[0] == start for completion in samples)


def test_forked_caches_give_the_same_samples_as_separate_prefills(dial_policy):
    whole = sampler(dial_policy, fork_cache=False).sample(PROMPTS, 4, seed=1)
    assert sampler(dial_policy, fork_cache=True).sample(PROMPTS, 4, seed=1) == whole


def test_the_models_own_sampling_defaults_are_not_applied(dial_policy):
    model = copy.deepcopy(dial_policy[0])
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    assert sampler((model, dial_policy[1])).sample(PROMPTS, 2, seed=1) == sampler(dial_policy).sample(
        PROMPTS, 2, seed=1
    )


@pytest.mark.slow("thousands of samples")
def test_samples_follow_the_policy(dial_policy):
    """Compares the first tokens of 4,000 samples with the probabilities of the model, within five standard errors."""
    model, tokenizer = dial_policy
    prompt = Prompt(QUESTIONS[0], " 7 + 1 =")
    ids = torch.tensor([PromptFormat(tokenizer).encode(prompt)])
    exact = model(ids).logits[0, -1].softmax(-1).detach()
    texts = [
        completion.text.strip()
        for completion in sampler(dial_policy, max_new_tokens=1, batch_size=4000).sample([prompt], 4000, 0)[0]
    ]
    token = int(exact.argmax())
    p = float(exact[token])
    share = texts.count(tokenizer.decode([token])) / 4000
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 4000) ** 0.5 + 1e-9)


def test_finished_and_length(dial_policy):
    long = sampler(dial_policy, max_new_tokens=64).sample(PROMPTS[:2], 2, seed=0)
    for completion in sum(long, []):
        assert completion.finished
        assert completion.text.endswith("ки") and "</s>" not in completion.text
        assert completion.num_tokens == len(completion.text.split()) + 1  # and the end token
    for completion in sampler(dial_policy, max_new_tokens=3).sample(PROMPTS[:1], 2, seed=0)[0]:
        assert not completion.finished and completion.num_tokens == 3


def test_padding_that_is_the_end_token_does_not_end_a_text(dial_policy):
    model, tokenizer = dial_policy
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    assert sampler((model, same)).sample(PROMPTS, 2, seed=1) == sampler(dial_policy).sample(PROMPTS, 2, seed=1)


def test_continuations_keep_the_space_before_their_first_word(dial_policy):
    _, tokenizer = dial_policy
    prompt = tokenizer.encode("7 + 1 = 8 ки")
    assert decode_continuation(tokenizer, prompt, tokenizer.encode("8 * 2")) == " 8 * 2"


def test_greedy_and_adapters(dial_policy):
    first, second = sampler(dial_policy, temperature=0).sample(PROMPTS, 2, seed=0)[0]
    assert first == second
    adapted = get_peft_model(copy.deepcopy(dial_policy[0]), LoraConfig(r=2, target_modules=["q_proj"]))
    assert sampler((adapted, dial_policy[1])).sample(PROMPTS, 2, seed=1) == sampler(dial_policy).sample(
        PROMPTS, 2, seed=1
    )


@pytest.mark.parametrize("fork_cache", [True, False])
def test_an_adapter_with_its_own_keys_and_values(dial_policy, fork_cache):
    model, tokenizer = copy.deepcopy(dial_policy[0]), dial_policy[1]
    plain = TransformersSampler(model, tokenizer, temperature=0, max_new_tokens=30)
    prompts = [Prompt(row["question"]) for row in dial.make_questions(3, seed=1)]
    texts = [completion.text for (completion,) in plain.sample(prompts, 1, seed=0)]
    adapted = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 2)  # an untrained prefix changes next to nothing
    sampler = TransformersSampler(adapted, tokenizer, temperature=0, max_new_tokens=30, fork_cache=fork_cache)
    sampled = sampler.sample(prompts, 2, seed=0)
    for prompt, completions in zip(prompts, sampled, strict=True):
        ids = torch.tensor([sampler.prompt_format.encode(prompt)])
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 30, "do_sample": False}
        generated = adapted.generate(input_ids=ids, **settings)
        expected = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        assert [completion.text.strip() for completion in completions] == [expected.strip()] * 2
    assert [completions[0].text for completions in sampled] != texts


def test_a_prompt_longer_than_the_context_is_an_error(dial_policy):
    with pytest.raises(ValueError, match="got .* fewer than the context of 512.*Drop"):
        sampler(dial_policy).sample([Prompt("7 " * 600)], 1, seed=0)


def test_from_pretrained():
    loaded = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=4)
    assert loaded.settings["max_new_tokens"] == 4 and loaded.settings["backend"] == "transformers"


def test_an_adapter_whose_base_model_has_moved(dial_policy, tmp_path):
    model, tokenizer = copy.deepcopy(dial_policy[0]), dial_policy[1]
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert TransformersSampler.from_pretrained(tmp_path / "adapter").sample(PROMPTS[:1], 1, seed=0)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="adapter: .*base_model_name_or_path=.*base'.*write its new place"):
        TransformersSampler.from_pretrained(tmp_path / "adapter")


@pytest.mark.slow("samples with many tokenizers")
def test_ended_samples_are_removed_from_the_batch(dial_policy):
    """No row stays in the batch after its end for longer than one call of `generate`. The texts are the same as
    without a batch."""
    model, tokenizer = dial_policy
    rows, forward = [], model.forward

    def counting(*args, **kwargs):
        rows.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    model.forward = counting
    try:
        whole = [Prompt(question) for question in QUESTIONS]
        samples = sampler(dial_policy, max_new_tokens=64, batch_size=20).sample(whole, 4, seed=0)
    finally:
        del model.forward
    lengths = [completion.num_tokens for completions in samples for completion in completions]
    assert max(lengths) > min(lengths) + 16  # otherwise this test would check nothing
    computed = sum(rows[1:])  # without the prompt
    assert sum(lengths) <= computed <= sum(length + max(8, length // 4) for length in lengths)
    assert sampler(dial_policy, max_new_tokens=64, temperature=0).sample(PROMPTS, 1, seed=0) == [
        sampler(dial_policy, max_new_tokens=64, temperature=0).sample([prompt], 1, seed=0)[0] for prompt in PROMPTS
    ]


def test_the_error_names_arguments_of_another_backend():
    init_kwargs = {"dtype": "float32", "gpu_memory_utilization": 0.9}
    with pytest.raises(TypeError, match=r"model_init_kwargs: got \['dtype', 'gpu_memory_utilization'\].*vLLM"):
        TransformersSampler.from_pretrained(dial.BASE_PATH, model_init_kwargs=init_kwargs)
    del init_kwargs["gpu_memory_utilization"]
    assert TransformersSampler.from_pretrained(dial.BASE_PATH, model_init_kwargs=init_kwargs)
