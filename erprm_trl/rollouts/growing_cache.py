"""A key-value cache with room to grow, for `TransformersSampler`: transformers' own copies all of itself for every
token."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


ROOM = 32  # tokens, at least; a quarter of the length where that is more


class GrowingLayer(DynamicLayer):
    """
    A layer of keys and values that writes new tokens into memory it has set aside.

    `keys` and `values`, of shape (B, heads, length, size), are views of longer tensors; whatever else replaces them
    (cropping, repeating) is taken over with the next token.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Sets aside nothing yet: the first tokens say how many sequences there are."""
        super().lazy_initialization(key_states, value_states)
        self._views = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Adds tokens, and returns all keys and values, as transformers' layers do."""
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
        """Keeps these sequences, in this order, and the room behind them: one copy instead of two."""
        if not self.is_initialized or self._views is None or self.keys is not self._views[0]:
            super().reorder_cache(beam_idx)
        else:
            self._buffers = [buffer.index_select(0, beam_idx.to(buffer.device)) for buffer in self._buffers]
            self._look_at(self.own_length())

    def own_length(self) -> int:
        """Tokens in `keys`."""
        return super().get_seq_length()

    def _look_at(self, length: int) -> None:
        self._views = self.keys, self.values = tuple(buffer[..., :length, :] for buffer in self._buffers)


def growing_cache(config) -> DynamicCache:
    """
    An empty cache for a model.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The model's; its layers that are no plain attention over all tokens (sliding windows, recurrent states)
            keep transformers' own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(held: torch.Tensor, new: torch.Tensor, length: int, room: int) -> torch.Tensor:
    buffer = new.new_empty((*new.shape[:-2], room, new.shape[-1]))
    if length:
        buffer[..., :length, :] = held
    return buffer
