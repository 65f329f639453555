"""Pads encoded examples into a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin


@dataclass
class DataCollatorForStepLabels(DataCollatorMixin):
    """
    Collator of [`ERPRMTrainer`].

    Args:
        pad_token_id (`int`):
            Fills `input_ids` on the right.
        pad_to_multiple_of (`int`, *optional*):
            Pads to a multiple of this length.

    Returns, for B examples: `input_ids` and `attention_mask` (B, T), `step_positions`, `step_labels` (float32) and
    `step_mask` (True at real steps) (B, S), `question_ids` and `prompt_lengths` (B,), the latter 0 where
    it is not known.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(example["input_ids"]) for example in examples)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        num_steps = max(len(example["step_positions"]) for example in examples)

        def padded(key: str, size: int, value: float, dtype: torch.dtype) -> torch.Tensor:
            rows = [list(example[key]) + [value] * (size - len(example[key])) for example in examples]
            return torch.tensor(rows, dtype=dtype)

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        steps = torch.tensor([len(example["step_positions"]) for example in examples])
        return {
            "input_ids": padded("input_ids", length, self.pad_token_id, torch.long),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "step_positions": padded("step_positions", num_steps, 0, torch.long),
            "step_labels": padded("step_labels", num_steps, 0.0, torch.float32),
            "step_mask": torch.arange(num_steps) < steps[:, None],
            "question_ids": torch.tensor(
                [example.get("question_id", index) for index, example in enumerate(examples)]
            ),
            "prompt_lengths": torch.tensor([example.get("prompt_length", 0) for example in examples]),
        }
