"""Collates encoded solutions into a batch: one solution per row, or several solutions packed into each row.

Solutions in a packed row must not attend to each other. Transformers separates them by their position ids.
[`check_packing`] verifies this for a model on a batch.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.data.data_collator import DataCollatorMixin


LABEL_PADDING = -100.0
"""Label of padded step positions. Transformers uses the same value."""

PACKED = "packed_examples"
"""Column of a dataset whose rows hold several examples, which are packed into one row of a batch."""

VARIABLE_LENGTH = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Arguments of FlashAttention's function for texts of different lengths, as transformers names them."""


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
            Rows of a dataset that is already packed (a column `packed_examples`) become the rows of the batch.
        padding_free (`bool`, *optional*, defaults to `False`):
            With `packing`, whether to concatenate all examples in a single row, without padding. Only FlashAttention
            separates them, by the lengths in the batch.

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
    - `dataset_rows` (B,), for a dataset that is already packed: the row of the dataset that holds each example.
    - `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k`, with `padding_free`: where the examples
      begin in the row, and the length of the longest example, as transformers passes them to FlashAttention.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    packing: bool = False
    padding_free: bool = False
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows_of_dataset = None
        if PACKED in examples[0]:
            rows_of_dataset = [row for row, packed in enumerate(examples) for _ in packed[PACKED]]
            examples = [example for packed in examples for example in packed[PACKED]]
        lengths = [len(example["input_ids"]) for example in examples]
        num_steps = max(len(example["step_positions"]) for example in examples)

        def padded(key: str, value: float, dtype: torch.dtype) -> torch.Tensor:
            rows = [list(example[key]) + [value] * (num_steps - len(example[key])) for example in examples]
            return torch.tensor(rows, dtype=dtype)

        steps = torch.tensor([len(example["step_positions"]) for example in examples])
        step_mask = torch.arange(num_steps) < steps[:, None]
        row_of, start_of = self._places(lengths, rows_of_dataset)
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
            **({} if rows_of_dataset is None else {"dataset_rows": torch.tensor(rows_of_dataset)}),
        }

    def _places(self, lengths: list[int], rows_of_dataset: list[int] | None) -> tuple[list[int], list[int]]:
        """The row of each example, and the example's first index in that row."""
        if not self.packing:
            return list(range(len(lengths))), [0] * len(lengths)
        if self.padding_free:
            rows_of_dataset = [0] * len(lengths)
        if rows_of_dataset is None:
            return pack_rows(lengths)
        filled = [0] * len(lengths)
        starts = []
        for row, length in zip(rows_of_dataset, lengths, strict=True):
            starts.append(filled[row])
            filled[row] += length
        return rows_of_dataset, starts

    def _lay_out(self, texts: list[list[int]], row_of: list[int], start_of: list[int]) -> dict[str, Any]:
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
            **(variable_lengths([len(text) for text in texts], length) if self.packing and self.padding_free else {}),
        }


def variable_lengths(lengths: Sequence[int], total: int) -> dict[str, Any]:
    """
    Arguments with which transformers calls FlashAttention's function for texts of different lengths.

    Args:
        lengths (`Sequence[int]`):
            Lengths of the texts, in their order in the row.
        total (`int`):
            Length of the row. Padding after the last text counts as a text of its own.
    """
    ends = list(accumulate(lengths, initial=0))
    ends += [total] if total > ends[-1] else []
    starts = torch.tensor(ends, dtype=torch.int32)
    longest = max(end - start for start, end in zip(ends, ends[1:], strict=False))
    return dict(zip(VARIABLE_LENGTH, (starts, starts, longest, longest), strict=True))


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


def num_own_rows(batch: dict[str, Tensor], remainder: int, process: int) -> int:
    """
    Number of a batch's solutions that are not copies, if only the first rows of all processes are no copies.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch of this process.
        remainder (`int`):
            Number of rows of the dataset in the batches of all processes that are no copies.
        process (`int`):
            Index of this process.
    """
    if "dataset_rows" not in batch:
        size = len(batch["rows"])
        return min(max(0, remainder - process * size), size)
    rows = batch["dataset_rows"]
    return int((rows < remainder - process * (rows[-1] + 1)).sum())


def padding_id(tokenizer) -> int:
    """The id of the padding token, else of the end-of-text token, else 0. Any id works, because padding is on the
    right and causal attention hides it from the text."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in ids if token_id is not None)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """
    Fills rows with texts: the longest text first, each into the row with the least space that is enough.

    Args:
        lengths (`Sequence[int]`):
            Lengths of the texts.
        capacity (`int`):
            Maximum length of a row. A longer text has its own row.

    Returns:
        `list[list[int]]`: the indices of the texts in each row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # the free space of each row that is not full, and the row, in order
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(spaces, (lengths[index], 0))
        if place == len(spaces):
            spaces.append((capacity, len(rows)))
            rows.append([])
        space, row = spaces.pop(place)
        rows[row].append(index)
        if space > lengths[index]:
            insort(spaces, (space - lengths[index], row))
    return rows


def pack_rows(lengths: list[int]) -> tuple[list[int], list[int]]:
    """
    Packs examples into rows by [`best_fit_decreasing`]. A row is as long as the longest example.

    Args:
        lengths (`list[int]`):
            Lengths of the examples, in any order.

    Returns:
        `tuple[list[int], list[int]]`: the row of each example, and the example's first index in that row.
    """
    row_of, start_of = [0] * len(lengths), [0] * len(lengths)
    for row, indices in enumerate(best_fit_decreasing(lengths, max(lengths))):
        starts = accumulate((lengths[index] for index in indices), initial=0)
        for index, start in zip(indices, starts, strict=False):
            row_of[index], start_of[index] = row, start
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
    padding_free = VARIABLE_LENGTH[0] in inputs
    other = {"input_ids": ids[::-1], "step_positions": [], "step_labels": []}
    solution = {"input_ids": ids, "step_positions": ends, "step_labels": [0.0] * len(ends)}
    first = {"input_ids": ids, "step_positions": [], "step_labels": []}
    rows = [{PACKED: [first, solution]}, {PACKED: [other, solution]}]
    batch = DataCollatorForStepLabels(0, packing=True, padding_free=padding_free)(rows)
    device = inputs["input_ids"].device
    logits = step_logits(
        {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
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
