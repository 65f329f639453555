"""Collates encoded solutions into a batch: one solution per row, or several solutions packed into each row.

Solutions in a packed row must not attend to each other. Transformers separates them by their position ids.
[`check_packing`] verifies this for a model on a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.data.data_collator import DataCollatorMixin


LABEL_PADDING = -100.0
"""Label of padded step positions. Transformers uses the same value."""


@dataclass
class DataCollatorForStepLabels(DataCollatorMixin):
    """
    Collator of [`ERPRMTrainer`].

    Args:
        pad_token_id (`int`):
            Token id that pads `input_ids` on the right.
        pad_to_multiple_of (`int`, *optional*):
            Pads rows to a multiple of this length.
        packing (`bool`, *optional*, defaults to `False`):
            Concatenates short examples in one row, up to the length of the batch's longest example, instead of padding
            each of them. `position_ids` restart with every example, and transformers uses them to separate the
            examples' attention. There is no `attention_mask`, because it would mark each packed row as a single text.

    A batch of B examples in R rows (R = B without packing) holds:

    - `input_ids` (R, T), with `attention_mask` (R, T) without packing and `position_ids` (R, T) with it.
    - `rows`, `starts` and `lengths` (B,): the row of each example, its first index in the row, and its length.
    - `step_positions` (B, S): index of each step's score in its row.
    - `step_labels` (B, S, float32): -100 where there is no step.
    - `step_mask` (B, S, bool): True at real steps.
    - `step_index` (number of steps,): index of each real step in the flattened `step_mask`. An accelerator selects
      steps by it without waiting for the host, as it would with a mask.
    - `step_weights` (B, S, float32), if the examples have them.
    - `ref_logps` (B, float64), if the examples have them: log-probability under a reference model. The batch then also
      has `solution_index`: index of each token between a question and its last label in the flattened `input_ids`.
    - `question_ids` (B,).
    - `prompt_lengths` (B,): 0 where the length is not known.
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
        texts = self._lay_out([example["input_ids"] for example in examples], row_of, start_of)
        return {
            **texts,
            "rows": torch.tensor(row_of),
            "starts": starts,
            "lengths": torch.tensor(lengths),
            "step_positions": (padded("step_positions", 0, torch.long) + starts[:, None]) * step_mask,
            "step_labels": padded("step_labels", LABEL_PADDING, torch.float32),
            **({"step_weights": padded("step_weights", 0.0, torch.float32)} if "step_weights" in examples[0] else {}),
            **(
                {
                    "ref_logps": torch.tensor([example["ref_logps"] for example in examples], dtype=torch.float64),
                    "solution_index": _solution_index(examples, texts["input_ids"].shape[1]),
                }
                if "ref_logps" in examples[0]
                else {}
            ),
            "step_mask": step_mask,
            "step_index": step_mask.flatten().nonzero().squeeze(1),
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
        # Positions restart at the padding, too, so that attention separates it from the last example.
        position_ids = torch.arange(length).repeat(shape[0], 1)
        for start, row, text in sorted(zip(start_of, row_of, texts, strict=True), key=lambda placed: placed[0]):
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


def _solution_index(examples: list[dict[str, Any]], length: int) -> Tensor:
    """Indices of the solutions' tokens in rows of this length. The first token of a text has no probability."""
    spans = [
        torch.arange(max(1, example.get("prompt_length", 0)), max(example["step_positions"], default=0) + 1)
        for example in examples
    ]
    return torch.cat([row * length + span for row, span in enumerate(spans)])


def with_step_index(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch with `step_index`, which is computed from `step_mask` if a collator did not add it."""
    if "step_index" in batch:
        return batch
    return {**batch, "step_index": batch["step_mask"].flatten().nonzero().squeeze(1)}


def padding_id(tokenizer) -> int:
    """The id of the padding token, else of the end-of-text token, else 0. Any id works, because padding is on the
    right and causal attention hides it from the text."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in ids if token_id is not None)


def pack_rows(lengths: list[int]) -> tuple[list[int], list[int]]:
    """
    Packs examples into rows by first-fit decreasing. A row is as long as the longest example.

    Args:
        lengths (`list[int]`):
            Lengths of the examples, in any order.

    Returns:
        `tuple[list[int], list[int]]`: the row of each example, and the example's first index in that row.
    """
    longest = max(lengths)
    filled: list[int] = []
    row_of, start_of = [0] * len(lengths), [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row, used in enumerate(filled) if used + lengths[index] <= longest), len(filled))
        if row == len(filled):
            filled.append(0)
        row_of[index], start_of[index] = row, filled[row]
        filled[row] += lengths[index]
    return row_of, start_of


def unpacked(inputs: dict[str, Tensor], index: int) -> tuple[list[int], list[int]]:
    """Token ids of one solution in a batch of [`DataCollatorForStepLabels`], and the positions of its step scores."""
    start, length = int(inputs["starts"][index]), int(inputs["lengths"][index])
    ids = inputs["input_ids"][int(inputs["rows"][index]), start : start + length].tolist()
    ends = inputs["step_positions"][index][inputs["step_mask"][index]] - start
    return ids, ends.tolist()


@torch.no_grad()
def check_packing(inputs: dict[str, Tensor], step_logits: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """
    Checks that a model scores a packed solution independently of the other solutions in its row.

    Two rows hold the same solution after two different texts. The model must give both copies the same logits. Every
    process of a distributed run calls this function with its own batch.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            A batch of [`DataCollatorForStepLabels`].
        step_logits (`Callable`):
            Function from a batch to the logits of all its steps, one row per step.

    Raises:
        `ValueError`: if the logits depend on the text before the solution.
    """
    ids, ends = unpacked(inputs, int(inputs["step_mask"].sum(-1).argmax()))  # the solution with the most steps
    ids = torch.tensor(ids, device=inputs["input_ids"].device)
    ends = torch.tensor(ends, device=ids.device)
    positions = torch.arange(len(ids), device=ids.device).repeat(2)
    logits = step_logits(
        {
            "input_ids": torch.stack([torch.cat([ids, ids]), torch.cat([ids.flip(0), ids])]),
            "position_ids": torch.stack([positions, positions]),
            "rows": torch.arange(2, device=ids.device),
            "step_positions": (ends + len(ids)).repeat(2, 1),
            "step_mask": torch.ones(2, len(ends), dtype=torch.bool, device=ids.device),
        }
    )
    first, second = logits.chunk(2)
    if not len(logits):
        return
    gap, size = (first - second).abs().max().item(), first.abs().max().item()
    if not gap <= 1e-3 * max(size, 1.0):
        raise ValueError(
            f"packing=True: got step logits that change by {gap:.3g} with the solution before them in the row, "
            "expected no change. The model does not separate texts by position_ids, for example because it has "
            "recurrent layers or custom code. Set packing=False."
        )
