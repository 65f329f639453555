"""Several solutions in a row: laid out, taken apart again, and checked not to see one another.

What keeps them apart is transformers' attention: it reads texts off the position ids.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def pack_rows(lengths: list[int]) -> tuple[list[int], list[int]]:
    """
    Puts each length into the first row that has room, the longest first; a row holds the longest length.

    Args:
        lengths (`list[int]`):
            Of the examples, in any order.

    Returns:
        `tuple[list[int], list[int]]`: the row of each example, and where in it the example starts.
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
    """Token ids of one solution of a batch of [`DataCollatorForStepLabels`], and its separators' positions in them."""
    start, length = int(inputs["starts"][index]), int(inputs["lengths"][index])
    ids = inputs["input_ids"][int(inputs["rows"][index]), start : start + length].tolist()
    ends = inputs["step_positions"][index][inputs["step_mask"][index]] - start
    return ids, ends.tolist()


@torch.no_grad()
def check_packing(inputs: dict[str, Tensor], step_logits: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """
    Checks on a batch that a model keeps the solutions of a row apart.

    A copy of a solution follows two different texts in two rows; what the model says of the copies must be the same.
    Every process of a distributed run calls it with its own batch.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            A batch of [`DataCollatorForStepLabels`].
        step_logits (`Callable`):
            From a batch to the logits of all its steps, one row a step.

    Raises:
        `ValueError`: if the texts before make a difference: the model's layers or its attention read past the start
        of a text.
    """
    ids, ends = unpacked(inputs, int(inputs["step_mask"].sum(-1).argmax()))  # one with steps, where there is any
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
            f"packing=True: the model's answer about a solution changes by {gap:.3g} with the solution before it in "
            "the row, expected no change. Its layers do not keep texts apart by position_ids (recurrent layers and "
            "models with code of their own do not): set packing=False."
        )
