"""Tests both caches against transformers' own cache. The growing cache has the same keys and values after any
operations. Samples that share the keys and values of their prompt have the same logits as samples with copies."""

import gc
import weakref

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from erprm_trl import dial
from erprm_trl.rollouts import Prompt, TransformersSampler
from erprm_trl.rollouts.sampling import kv_cache
from erprm_trl.rollouts.sampling.kv_cache import (
    ROOM,
    GrowingLayer,
    PromptsNotShared,
    SharedPrompts,
    SharedPromptsCache,
    can_share,
    growing_cache,
    shared_prompts_attention,
    sharing_prompts,
)


GROWING = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
SIZES = {
    "vocab_size": 46, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
SHARED = {
    "llama": LlamaConfig(**SIZES),
    "grouped": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "neox": GPTNeoXConfig(**SIZES),
}
COUNTS = [3, 1, 4]  # samples of each prompt
LENGTHS = [7, 5, 7]


def random_tokens(rows, length):
    return torch.randn(rows, 2, length, 4)


@pytest.mark.parametrize("seed", range(5))
def test_random_operations_against_transformers_own_cache(seed):
    """Applies random operations to both caches, and compares all returned and stored keys and values."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ours, original = growing_cache(GROWING), DynamicCache(config=GROWING)
    rows = 3
    actions = ["add", *(["add"] * 5 + ["pick", "crop", "repeat"]) * 6]
    for name in [actions[0], *(actions[i] for i in torch.randperm(len(actions), generator=generator).tolist())]:
        if name == "add":
            length = int(torch.randint(1, 2 * ROOM, (), generator=generator))
            for layer in range(2):
                new = random_tokens(rows, length), random_tokens(rows, length)
                for left, right in zip(ours.update(*new, layer), original.update(*new, layer), strict=True):
                    assert torch.equal(left, right)
        elif name == "pick" and rows < 50:
            kept = torch.randint(rows, (rows + 1,), generator=generator)
            ours.reorder_cache(kept)
            original.reorder_cache(kept)
            rows = len(kept)
        elif name == "crop":
            ours.crop(-3)
            original.crop(-3)
        elif name == "repeat" and rows < 20:
            ours.batch_repeat_interleave(2)
            original.batch_repeat_interleave(2)
            rows *= 2
        assert ours.get_seq_length() == original.get_seq_length()
        for mine, theirs in zip(ours.layers, original.layers, strict=True):
            if mine.is_initialized:
                assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


def test_memory_is_allocated_once_for_many_tokens():
    cache = growing_cache(GROWING)
    cache.update(random_tokens(2, 5), random_tokens(2, 5), 0)
    places = set()
    for _ in range(ROOM):
        keys, _ = cache.update(random_tokens(2, 1), random_tokens(2, 1), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1


def test_other_kinds_of_layers_keep_transformers_own_cache():
    config = MistralConfig(num_hidden_layers=2, sliding_window=4)
    assert [type(layer) for layer in growing_cache(config).layers] == [
        type(layer) for layer in DynamicCache(config=config).layers
    ]
    assert all(isinstance(layer, GrowingLayer) for layer in growing_cache(GROWING).layers)


def tiny(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def prefilled(model):
    """Prefills prompts of two lengths, padded on the left, without their last token."""
    mask = torch.tensor([[0] * (max(LENGTHS) - length) + [1] * length for length in LENGTHS])
    ids = torch.randint(4, 46, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    cache = growing_cache(model.config)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    model(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    return cache, ids[:, -1:], mask


def decode(model, cache, ids, mask, keeps, seed=2):
    """Logits of consecutive tokens. Before each token, samples may be removed."""
    generator, logits = torch.Generator().manual_seed(seed), []
    for keep in keeps:
        if keep is not None:
            keep = torch.tensor(keep)
            cache.reorder_cache(keep)
            ids, mask = ids[keep], mask[keep]
        positions = mask.sum(-1, keepdim=True) - 1
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        logits.append(out.logits[:, -1])
        ids = torch.randint(4, 46, ids.shape, generator=generator)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return logits


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_shared_prompts_give_the_same_logits_as_copies(name):
    model = tiny(SHARED[name])
    counts = torch.tensor(COUNTS)
    # All samples, then a part of two prompts, then no sample of the first prompt, and then only the last sample.
    keeps = [None, None, [0, 2, 3, 5, 7], None, [2, 3, 4], [2], None]
    decoded = []
    for share in (False, True):
        cache, ids, mask = prefilled(model)
        ids, mask = ids.repeat_interleave(counts, 0), mask.repeat_interleave(counts, 0)
        if share:
            assert can_share(model, cache)
            cache = SharedPromptsCache(cache, counts)
            with sharing_prompts(model):
                decoded.append(decode(model, cache, ids, mask, keeps))
            assert cache.prompts.num_prompts == 1 and cache.layers[0].prompt_keys.shape[0] == 1
            assert cache.get_seq_length() == 6 + len(keeps)
        else:
            cache.reorder_cache(torch.arange(3).repeat_interleave(counts))
            decoded.append(decode(model, cache, ids, mask, keeps))
    for copies, shared in zip(*decoded, strict=True):
        assert copies.std() > 0.05
        torch.testing.assert_close(shared, copies, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_mask_without_padding_may_be_left_out():
    model = tiny(SHARED["grouped"])
    ids = torch.randint(4, 46, (2, 6), generator=torch.Generator().manual_seed(0))
    copies, cache = DynamicCache(config=model.config), growing_cache(model.config)
    model(input_ids=ids, past_key_values=cache)
    model(input_ids=ids.repeat_interleave(2, 0), past_key_values=copies)
    token = torch.tensor([[4], [5], [6], [7]])
    expected = model(input_ids=token, past_key_values=copies).logits
    with sharing_prompts(model):
        shared = model(input_ids=token, past_key_values=SharedPromptsCache(cache, torch.tensor([2, 2]))).logits
        torch.testing.assert_close(model(input_ids=ids).logits[:, 2], model(input_ids=ids[:, :3]).logits[:, 2])
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-5)


def test_shared_prompts_are_as_accurate_as_copies_in_bfloat16():
    exact = tiny(SHARED["grouped"])
    half = tiny(SHARED["grouped"]).bfloat16()
    counts, last_logits = torch.tensor(COUNTS), {}
    for name, model, share in (("exact", exact, False), ("copies", half, False), ("shared", half, True)):
        with torch.no_grad():
            cache, ids, mask = prefilled(model)
            ids, mask = ids.repeat_interleave(counts, 0), mask.repeat_interleave(counts, 0)
            if share:
                with sharing_prompts(model):
                    last_logits[name] = decode(model, SharedPromptsCache(cache, counts), ids, mask, [None] * 4)[
                        -1
                    ].float()
            else:
                cache.reorder_cache(torch.arange(3).repeat_interleave(counts))
                last_logits[name] = decode(model, cache, ids, mask, [None] * 4)[-1].float()
    gaps = {name: (last_logits[name] - last_logits["exact"]).square().mean().sqrt() for name in ("copies", "shared")}
    assert gaps["shared"] < 1.5 * gaps["copies"]


@pytest.mark.parametrize("seed", range(4))
def test_by_prompt_and_by_sample_are_inverse(seed):
    """Converting to prompts and back changes nothing, and each prompt gets its own samples, also after removals."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (6,), generator=generator)
    prompts = SharedPrompts(counts)
    owners = [prompt for prompt, count in enumerate(counts.tolist()) for _ in range(count)]
    for _ in range(4):
        values = torch.randn(len(owners), 2, 3, 5, generator=generator)
        placed = prompts.by_prompt(values)
        assert torch.equal(prompts.by_sample(placed), values)
        for place, owner in enumerate(dict.fromkeys(owners)):
            own = values[[index for index, other in enumerate(owners) if other == owner]]
            expected = own.transpose(0, 1).reshape(2, -1, 5)
            assert torch.equal(placed[place, :, : expected.shape[1]], expected)
        kept = (torch.rand(len(owners), generator=generator) < 0.7).nonzero().flatten()
        if len(kept) == 0:
            break
        left = list(dict.fromkeys(owners))
        owners = [owners[index] for index in kept.tolist()]
        assert prompts.keep(kept).tolist() == [left.index(owner) for owner in dict.fromkeys(owners)]


def sample(model, tokenizer, **options):
    questions = [row["question"] for row in dial.make_questions(5, seed=3)]
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=24, batch_size=12, **options)
    return sampler, sampler.sample([Prompt(question) for question in questions], 4, seed=0)


@pytest.mark.parametrize("stop", [(), ("ки",)])
def test_the_sampler_shares_prompts(stop, dial_policy, monkeypatch):
    seen = []
    attend = kv_cache.shared_prompts_attention

    def counted(module, query, key, *args, **kwargs):
        seen.append(hasattr(key, "shared_by"))
        return attend(module, query, key, *args, **kwargs)

    monkeypatch.setattr(kv_cache, "shared_prompts_attention", counted)
    questions = [Prompt(row["question"]) for row in dial.make_questions(5, seed=3)]
    results = [
        TransformersSampler(*dial_policy, max_new_tokens=24, batch_size=12, fork_cache=fork).sample(
            questions, 4, seed=0, stop=stop
        )
        for fork in (True, False)
    ]
    assert results[0] == results[1]
    assert seen and all(seen)


OWN = {
    "sliding windows": MistralConfig(**GROUPED, sliding_window=8),
    "soft caps": Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "eager": LlamaConfig(**GROUPED, attn_implementation="eager"),
}


@pytest.mark.slow("samples with many models")
@pytest.mark.parametrize("name", OWN)
def test_models_with_another_attention_get_copies(name, dial_policy):
    model = tiny(OWN[name])
    assert not can_share(model, growing_cache(model.config))
    model.generation_config.eos_token_id = 2
    before = model.config._attn_implementation
    _, copied = sample(model, dial_policy[1])
    assert copied == sample(model, dial_policy[1], fork_cache=False)[1]
    assert model.config._attn_implementation == before


def test_an_attention_function_without_support_for_shared_keys_is_detected(dial_policy, monkeypatch):
    attend = kv_cache.shared_prompts_attention

    def forgetful(module, query, key, value, mask, **kwargs):
        return attend(module, query, key + 0, value + 0, None, **kwargs)

    monkeypatch.setattr(kv_cache, "shared_prompts_attention", forgetful)
    sampler, copied = sample(*dial_policy)
    assert not sampler._shares
    assert copied == sample(*dial_policy, fork_cache=False)[1]
    assert dial_policy[0].config._attn_implementation == "sdpa"


@torch.no_grad()
def test_memory_is_freed_with_the_cache():
    cache = SharedPromptsCache(prefilled(tiny(SHARED["llama"]))[0], torch.tensor(COUNTS))
    new = torch.randn(8, 4, 1, 8)
    for layer in range(2):
        keys, _ = cache.update(new, new, layer)
        shared_prompts_attention(None, new, keys, keys, None)
    layers = [weakref.ref(layer) for layer in cache.layers]
    gc.disable()
    try:
        del cache, keys
        assert [layer() for layer in layers] == [None, None]
    finally:
        gc.enable()


@torch.no_grad()
def test_errors_for_attention_that_is_not_plain():
    model = tiny(SHARED["llama"])
    cache, _, _ = prefilled(model)
    layer = SharedPromptsCache(cache, torch.tensor(COUNTS)).layers[0]
    new = torch.randn(8, 4, 1, 8)
    keys, values = layer.update(new, new)
    with pytest.raises(PromptsNotShared, match="its own attention function"):
        layer.update(new, new)
    for options in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 4}):
        with pytest.raises(PromptsNotShared, match="is not plain"):
            kv_cache.shared_prompts_attention(None, new, keys, values, None, **options)
    with pytest.raises(PromptsNotShared, match="is not plain"):
        kv_cache.shared_prompts_attention(None, new.repeat(1, 1, 2, 1), keys, values, None)
