"""Ends transformers' `generate` at strings, row by row. Which strings end a step is said by `steps.step_stops`."""

from collections.abc import Sequence

import torch
from transformers import StoppingCriteria

from .base import decode_continuation, holds_stop


class StopStrings(StoppingCriteria):
    """
    Ends each row with the token that completes one of the strings in its new text.

    The text is the one that [`decode_continuation`] gives, so strings are found with any tokenizer, also one without a
    decoder.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop (`Sequence[str]`):
            The strings.
        prompts (`list[list[int]]`):
            Token ids of each row's prompt, not padded.
        start (`int`):
            Where new tokens begin in the padded rows.

    `lengths` has the number of new tokens of each row that was stopped, `None` for the others.
    """

    def __init__(self, tokenizer, stop: Sequence[str], prompts: list[list[int]], start: int):
        self.tokenizer, self.stop, self.prompts, self.start = tokenizer, tuple(stop), prompts, start
        self.lengths: list[int | None] = [None] * len(prompts)
        # A token that shows at all shows a byte at least.
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
        """Keeps these rows, of which none has been stopped."""
        self.prompts = [self.prompts[row] for row in rows]
        self.lengths = [None] * len(rows)

    def _completes(self, token: int) -> bool:
        # Most tokens cannot end any of the strings. Part of a character, and a space, which many tokenizers do not
        # show in a token alone, might.
        if token not in self._may_complete:
            text = self.tokenizer.decode([token])
            self._may_complete[token] = "\ufffd" in text or any(
                string[-1] == " " or string[-1] in text for string in self.stop
            )
        return self._may_complete[token]
