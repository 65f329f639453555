"""Key-value caches that make sampling with transformers faster.

A growing cache allocates memory for future tokens, while transformers' own cache is copied for every new token. A
cache of shared prompts also stores each prompt only once for all its samples, with an attention function that reads it
once per token instead of once per sample and token. This is faster because decoding is limited by memory bandwidth
(Juravsky et al., Hydragen, 2402.05099). It works for models with transformers' plain SDPA attention ([`can_share`]).
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


ROOM = 32  # smallest number of tokens for which memory is allocated; a quarter of the length if that is more
ATTENTION = "erprm_shared_prompts"  # name under which the attention below is registered in transformers
MORE_THAN_PLAIN = ("softcap", "s_aux", "position_bias", "sliding_window")  # arguments that it does not implement


class GrowingLayer(DynamicLayer):
    """
    A cache layer that writes new tokens into memory that it has allocated in advance.

    `keys` and `values`, of shape (B, heads, length, size), are views of longer tensors. Other code may replace them,
    e.g. by cropping or repeating. The next token is then added to the replacement.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates no memory yet, because the number of sequences is known only with the first tokens."""
        super().lazy_initialization(key_states, value_states)
        self._views = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Adds tokens, and returns all keys and values, as in transformers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.own_length()
        end = length + key_states.shape[-2]
        if self._views is None or self.keys is not self._views[0] or end > self._buffers[0].shape[-2]:
            room = end + max(ROOM, end // 4)
            self._buffers = [
                _with_room(held, new, length, room)
                for held, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., length:end, :] = new
        self._look_at(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keeps these sequences in this order. The allocated memory is kept too, which needs one copy instead of
        two."""
        if not self.is_initialized or self._views is None or self.keys is not self._views[0]:
            super().reorder_cache(beam_idx)
        else:
            self._buffers = [buffer.index_select(0, beam_idx.to(buffer.device)) for buffer in self._buffers]
            self._look_at(self.own_length())

    def own_length(self) -> int:
        """Number of tokens in `keys`."""
        return super().get_seq_length()

    def _look_at(self, length: int) -> None:
        self._views = self.keys, self.values = tuple(buffer[..., :length, :] for buffer in self._buffers)


def growing_cache(config) -> DynamicCache:
    """
    Creates an empty growing cache for a model.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model. Layers without plain attention over all tokens (sliding windows, recurrent
            states) keep transformers' own cache.

    Returns:
        [`~transformers.DynamicCache`]: the cache.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PromptsNotShared(RuntimeError):
    """The model uses its keys in a way that sharing does not support. It is raised before a wrong token is sampled."""


class SharedPrompts:
    """
    The assignment of B samples to U prompts. The samples of a prompt are consecutive.

    Args:
        counts (`torch.Tensor`):
            Number of samples of each prompt, shape (U,).

    Attributes:
        owners (`torch.Tensor`): index of the prompt of each sample, shape (B,), ascending.
        unread (`bool`): whether keys were returned that [`shared_prompts_attention`] has not read.
    """

    def __init__(self, counts: Tensor):
        self.unread = False
        self._arrange(torch.arange(len(counts), device=counts.device).repeat_interleave(counts))

    def check(self) -> None:
        """Raises `PromptsNotShared` if keys were returned that another attention function has read."""
        if self.unread:
            raise PromptsNotShared("The model has its own attention function.")

    def keep(self, samples: Tensor) -> Tensor:
        """Keeps these samples, in ascending order. Returns the indices of the prompts that still have samples."""
        prompts, owners = self.owners[samples].unique_consecutive(return_inverse=True)
        self._arrange(owners)
        return prompts

    def _arrange(self, owners: Tensor) -> None:
        self.owners = owners
        counts = owners.bincount()
        self.num_prompts, self.most = len(counts), int(counts.max())
        self._full = self.num_prompts * self.most == len(owners)  # all prompts have equally many samples
        samples = torch.arange(len(owners), device=owners.device)
        # Each prompt gets as many places as the prompt with most samples needs.
        self._places = owners * self.most + samples - (counts.cumsum(0) - counts)[owners]
        self._samples = samples.new_zeros(self.num_prompts * self.most).scatter(0, self._places, samples)

    def by_prompt(self, of_samples: Tensor) -> Tensor:
        """From (B, heads, queries, n) to (U, heads, most samples × queries, n). Free places contain arbitrary
        values."""
        placed = of_samples if self._full else of_samples[self._samples.to(of_samples.device)]
        placed = placed.unflatten(0, (self.num_prompts, self.most))
        return placed.transpose(1, 2).flatten(2, 3)

    def by_sample(self, of_prompts: Tensor) -> Tensor:
        """The inverse of [`~SharedPrompts.by_prompt`]."""
        placed = of_prompts.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)
        return placed if self._full else placed[self._places.to(placed.device)]


class SharedPromptsLayer(GrowingLayer):
    """
    The keys and values of a layer. `prompt_keys` and `prompt_values`, of shape (U, heads, length, size), belong to the
    prompts, `keys` and `values` to the tokens of the samples after their prompts.
    """

    def __init__(self, prefilled: GrowingLayer, prompts: SharedPrompts):
        super().__init__()
        self.prompts = prompts
        self.prompt_keys, self.prompt_values = prefilled.keys, prefilled.values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """
        Adds tokens. Returns only the keys and values after the prompts, for [`shared_prompts_attention`].

        Raises:
            `PromptsNotShared`: if another attention function has read the keys of another layer.
        """
        self.prompts.check()
        keys, values = super().update(key_states, value_states)
        keys.shared_by = weakref.ref(self)  # avoids a reference cycle, so that memory is freed with the cache
        self.prompts.unread = True
        return keys, values

    def get_seq_length(self) -> int:
        """Number of tokens of a prompt and of a sample after its prompt."""
        return self.prompt_keys.shape[-2] + self.own_length()

    def keep_prompts(self, prompts: Tensor) -> None:
        """Keeps these prompts."""
        prompts = prompts.to(self.prompt_keys.device)
        self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


class SharedPromptsCache(DynamicCache):
    """
    The cache for B samples that continue U prompts.

    Args:
        prefilled ([`~transformers.DynamicCache`]):
            Growing cache with the prompts. It is not changed.
        counts (`torch.Tensor`):
            Number of samples of each prompt, at least 1, shape (U,).
    """

    def __init__(self, prefilled: DynamicCache, counts: Tensor):
        super().__init__()
        self.prompts = SharedPrompts(counts)
        self.layers = [SharedPromptsLayer(layer, self.prompts) for layer in prefilled.layers]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps these samples, in ascending order."""
        before = self.prompts.num_prompts
        prompts = self.prompts.keep(beam_idx)
        super().reorder_cache(beam_idx)
        if len(prompts) < before:
            for layer in self.layers:
                layer.keep_prompts(prompts)


def shared_prompts_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **kwargs
) -> tuple[Tensor, None]:
    r"""
    Attention of one new token per sample to its prompt and to its tokens after the prompt. An attention function of
    transformers.

    $$ o = \mathrm{softmax}(q [K_u; K_b]^\top / \sqrt{d}) [V_u; V_b] $$

    The keys and values $K_u, V_u$ of a prompt are read once for all its samples. The softmax is in float32.

    Args:
        query (`torch.Tensor`):
            Queries of the new tokens, shape (B, query heads, 1, d).
        key, value (`torch.Tensor`):
            Keys and values that [`SharedPromptsLayer.update`] returned, shape (B, heads, own length, d). For other
            keys and values, SDPA is used.
        attention_mask (`torch.Tensor`, *optional*):
            Booleans, True where attended, shape (B or 1, 1, 1, prompt length + own length).

    Returns:
        `tuple[torch.Tensor, None]`: the output (B, 1, query heads, d), and `None` for the attention weights.

    Raises:
        `PromptsNotShared`: for several new tokens at once, or for attention that is not plain (soft caps, sinks,
            position biases, sliding windows).
    """
    shared_by = getattr(key, "shared_by", None)
    if shared_by is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if query.shape[2] != 1 or any(kwargs.get(name) is not None for name in MORE_THAN_PLAIN):
        raise PromptsNotShared("The attention of the model is not plain.")
    layer = shared_by()
    prompts = layer.prompts
    prompts.unread = False
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = (query * scaling).reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
    to_prompts = prompts.by_prompt(grouped) @ layer.prompt_keys.transpose(-1, -2)
    scores = torch.cat([prompts.by_sample(to_prompts), grouped @ key.transpose(-1, -2)], -1)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    of_prompts, of_own = weights.split([layer.prompt_keys.shape[-2], key.shape[-2]], -1)
    from_prompts = prompts.by_sample(prompts.by_prompt(of_prompts) @ layer.prompt_values)
    return (from_prompts + of_own @ value).reshape(query.shape[0], 1, -1, value.shape[-1]), None


def can_share(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether all layers of a model use SDPA attention over all tokens, as far as this is known without running it."""
    return (
        model.config._attn_implementation == "sdpa"
        and type(model)._can_set_attn_implementation()  # seam
        and all(type(layer) is GrowingLayer for layer in cache.layers)
    )


def adds_virtual_tokens(model) -> bool:
    """Whether a model has an adapter that adds tokens, or keys and values, before each text (prefix tuning, prompt
    tuning, ...). PEFT then creates the cache itself."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


@contextmanager
def sharing_prompts(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the model uses [`shared_prompts_attention`]."""
    AttentionInterface.register(ATTENTION, shared_prompts_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _with_room(held: Tensor, new: Tensor, length: int, room: int) -> Tensor:
    buffer = new.new_empty((*new.shape[:-2], room, new.shape[-1]))
    if length:
        buffer[..., :length, :] = held
    return buffer
