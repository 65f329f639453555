"""Lays encoded examples out as a batch: a row each, or several in a row."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from .packing import pack_rows


@dataclass
class DataCollatorForStepLabels(DataCollatorMixin):
    """
    Collator of [`ERPRMTrainer`].

    Args:
        pad_token_id (`int`):
            Fills `input_ids` on the right.
        pad_to_multiple_of (`int`, *optional*):
            Pads to a multiple of this length.
        packing (`bool`, *optional*, defaults to `False`):
            Lays short examples behind one another in a row, as many as fit the batch's longest, instead of padding
            each. `position_ids` start anew with every example, by which transformers keeps their attention apart.
            Without `attention_mask`: it would say that a row is one text.

    Returns, for B examples in R rows (B without packing): `input_ids` and `attention_mask` or `position_ids` (R, T);
    `rows`, `starts` and `lengths` (B,), where each example lies; `step_positions` (B, S), indices into its row,
    `step_labels` (B, S, float32) and `step_mask` (B, S, True at real steps), `step_weights` (B, S, float32) if
    examples have them; `question_ids` and `prompt_lengths` (B,),
    the latter 0 where it is not known.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    packing: bool = False
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        num_steps = max(len(example["step_positions"]) for example in examples)

        def padded(key: str, value: float, dtype: torch.dtype) -> torch.Tensor:
            rows = [list(example[key]) + [value] * (num_steps - len(example[key])) for example in examples]
            return torch.tensor(rows, dtype=dtype)

        steps = torch.tensor([len(example["step_positions"]) for example in examples])
        step_mask = torch.arange(num_steps) < steps[:, None]
        row_of, start_of = pack_rows(lengths) if self.packing else (list(range(len(examples))), [0] * len(examples))
        starts = torch.tensor(start_of)
        return {
            **self._lay_out([example["input_ids"] for example in examples], row_of, start_of),
            "rows": torch.tensor(row_of),
            "starts": starts,
            "lengths": torch.tensor(lengths),
            "step_positions": (padded("step_positions", 0, torch.long) + starts[:, None]) * step_mask,
            "step_labels": padded("step_labels", 0.0, torch.float32),
            **({"step_weights": padded("step_weights", 0.0, torch.float32)} if "step_weights" in examples[0] else {}),
            "step_mask": step_mask,
            "question_ids": torch.tensor(
                [example.get("question_id", index) for index, example in enumerate(examples)]
            ),
            "prompt_lengths": torch.tensor([example.get("prompt_length", 0) for example in examples]),
        }

    def _lay_out(self, texts: list[list[int]], row_of: list[int], start_of: list[int]) -> dict[str, torch.Tensor]:
        length = max(start + len(text) for start, text in zip(start_of, texts, strict=True))
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        shape = (max(row_of) + 1, length)
        input_ids = torch.full(shape, self.pad_token_id)
        real = torch.zeros(shape, dtype=torch.long)
        # Padding is an example of its own: what follows the last one does not see it either.
        position_ids = torch.arange(length).repeat(shape[0], 1)
        for start, row, text in sorted(zip(start_of, row_of, texts, strict=True), key=lambda one: one[0]):
            end = start + len(text)
            input_ids[row, start:end] = torch.as_tensor(text)
            real[row, start:end] = 1
            if self.packing:
                position_ids[row, start:] = torch.arange(length - start)
                position_ids[row, end:] = torch.arange(length - end)
        return {
            "input_ids": input_ids,
            **({"position_ids": position_ids} if self.packing else {"attention_mask": real}),
        }
