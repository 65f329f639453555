"""A logits processor that draws each row's tokens from the row's own seed.

`generate` draws the tokens of all rows from one random state, so a row's text depends on the other rows of its batch.
A sampler uses this processor, with greedy decoding, when every prompt has its own seed.
"""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class SeededChoice(LogitsProcessor):
    """
    Samples one token per row, and gives all other tokens the score -inf.

    A row draws one uniform number per position from its seed, and takes the token at this quantile of its
    distribution. Its text therefore depends on other rows only through the rounding of the model's logits.

    Args:
        seeds (`Sequence[int]`):
            One seed per row.
        start (`int`):
            Index of the first new token in the padded rows.
        max_new_tokens (`int`):
            Maximum number of new tokens per row.
        temperature (`float`), top_p (`float`), top_k (`int`):
            See [`TransformersSampler`]. The temperature is not 0.
    """

    def __init__(
        self, seeds: Sequence[int], start: int, max_new_tokens: int, temperature: float, top_p: float, top_k: int
    ):
        self.start = start
        uniforms = [_uniforms(seed, max_new_tokens) for seed in seeds]
        self.uniforms = torch.stack(uniforms) if uniforms else torch.empty(0, max_new_tokens, dtype=torch.float64)
        self.warpers: list[LogitsProcessor] = []
        if temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            self.warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        # Apple's GPUs have no float64.
        precision = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = scores.to(precision).softmax(-1).cumsum(-1)
        total = cumulative[:, -1:]
        column = self.uniforms[:, input_ids.shape[1] - self.start, None].to(scores.device, precision)
        # With right=True, a token without probability is never the first whose cumulative probability is larger.
        points = torch.minimum(column * total, total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, points, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def keep(self, rows: list[int]) -> None:
        """Keeps only these rows, the others of which have ended."""
        self.uniforms = self.uniforms[rows]


def _uniforms(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
