"""The cache with room against transformers' own: the same keys and values whatever is done to it."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig

from erprm_trl.rollouts.sampling.kv_cache import ROOM, GrowingLayer, growing_cache


CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)


def tokens(rows, length):
    return torch.randn(rows, 2, length, 4)


@pytest.mark.parametrize("seed", range(5))
def test_a_random_life_against_the_original(seed):
    """Prompts, forks, tokens, rows that leave, crops and repeats; everything returned and held is equal."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ours, original = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 3
    actions = ["add", *(["add"] * 5 + ["pick", "crop", "repeat"]) * 6]
    for name in [actions[0], *(actions[i] for i in torch.randperm(len(actions), generator=generator).tolist())]:
        if name == "add":
            length = int(torch.randint(1, 2 * ROOM, (), generator=generator))
            for layer in range(2):
                new = tokens(rows, length), tokens(rows, length)
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


def test_memory_is_set_aside_once_for_many_tokens():
    cache = growing_cache(CONFIG)
    cache.update(tokens(2, 5), tokens(2, 5), 0)
    places = set()
    for _ in range(ROOM):
        keys, _ = cache.update(tokens(2, 1), tokens(2, 1), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1


def test_layers_of_other_kinds_stay_what_they_are():
    config = MistralConfig(num_hidden_layers=2, sliding_window=4)
    assert [type(layer) for layer in growing_cache(config).layers] == [
        type(layer) for layer in DynamicCache(config=config).layers
    ]
    assert all(isinstance(layer, GrowingLayer) for layer in growing_cache(CONFIG).layers)
