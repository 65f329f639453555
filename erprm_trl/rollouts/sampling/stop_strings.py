"""A stopping criterion that ends rows of transformers' `generate` at strings."""

from collections.abc import Sequence

import torch
from transformers import StoppingCriteria

from .base import decode_continuation, holds_stop


class StopStrings(StoppingCriteria):
    """
    Stops each row after the token that completes one of the strings in its new text.

    The text is decoded by [`decode_continuation`], so strings are found with any tokenizer, including tokenizers
    without a decoder.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        stop (`Sequence[str]`):
            Strings at which rows stop.
        prompts (`list[list[int]]`):
            Token ids of the prompt of each row, without padding.
        start (`int`):
            Index of the first new token in the padded rows.

    Attributes:
        lengths (`list[int | None]`): number of new tokens of each stopped row, `None` for the other rows.
    """

    def __init__(self, tokenizer, stop: Sequence[str], prompts: list[list[int]], start: int):
        self.tokenizer, self.stop, self.prompts, self.start = tokenizer, tuple(stop), prompts, start
        self.lengths: list[int | None] = [None] * len(prompts)
        # Every token with text has at least one byte, so this many tokens contain the longest string.
        self._window = max(len(string.encode()) for string in stop) + 4
        self._may_complete: dict[int, bool] = {}

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        length = input_ids.shape[1] - self.start
        window = input_ids[:, max(self.start, input_ids.shape[1] - self._window) :].tolist()
        for row, new in enumerate(window):
            if self.lengths[row] is None and self._completes(new[-1]):
                before = self.prompts[row] + input_ids[row, self.start : self.start + length - len(new)].tolist()
                if holds_stop(decode_continuation(self.tokenizer, before, new), self.stop):
                    self.lengths[row] = length
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def keep(self, rows: list[int]) -> None:
        """Keeps only these rows, none of which has stopped."""
        self.prompts = [self.prompts[row] for row in rows]
        self.lengths = [None] * len(rows)

    def _completes(self, token: int) -> bool:
        # Most tokens cannot end any of the strings. Tokens with a part of a character may end one, and so may tokens
        # with a space, which many tokenizers do not show when they decode a single token.
        if token not in self._may_complete:
            text = self.tokenizer.decode([token])
            self._may_complete[token] = "\ufffd" in text or any(
                string[-1] == " " or string[-1] in text for string in self.stop
            )
        return self._may_complete[token]
