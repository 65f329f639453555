"""Tells the tokens that the policy wrote from the tokens of tools and environments, which get no credit."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def loss_mask(batch: Mapping[str, Any]) -> Tensor:
    """
    Mask of the tokens that the policy wrote, as in TRL's loss.

    Args:
        batch (`Mapping[str, Any]`):
            TRL's batch, with `completion_mask` and, for policies with tools, `tool_mask`, both of shape (B, T).

    Returns:
        `torch.Tensor`: integers (B, T), 0 at padding and at the tokens of tools.
    """
    mask = batch["completion_mask"]
    return mask if "tool_mask" not in batch else mask * batch["tool_mask"]


def with_tool_masks(
    subject: str, inputs: list[dict[str, Any]], completion_ids: list[list[int]], tool_masks: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """
    Adds the column `tool_mask` to the rows of a batch, so that TRL passes it to the reward functions.

    Args:
        subject (`str`):
            Name of the trainer, for error messages.
        inputs (`list[dict[str, Any]]`):
            Rows of the dataset, one per completion.
        completion_ids (`list[list[int]]`):
            Tokens of each completion.
        tool_masks (`Sequence`, *optional*):
            For each completion, 1 at each token of the policy and 0 at each token of a tool or an environment. Without
            tools and environment it is `None`, and no column is added.

    Raises:
        `ValueError`: if a mask is not as long as its completion. TRL would count the tokens without a mask as the
            policy's.
    """
    if tool_masks is None:
        return inputs
    if len(tool_masks) != len(completion_ids):
        raise ValueError(
            f"env_mask for {subject}: got {len(tool_masks)} masks for {len(completion_ids)} completions, expected one "
            "per completion. Return one mask per completion from `rollout_func`."
        )
    masks = [[int(value) for value in mask] for mask in tool_masks]
    for row, (ids, mask) in enumerate(zip(completion_ids, masks, strict=True)):
        if len(ids) != len(mask):
            raise ValueError(
                f"env_mask[{row}] for {subject}: got {len(mask)} values for a completion of {len(ids)} tokens, "
                "expected one value per token: 1 for a token of the policy, 0 for a token of the environment. Correct "
                "what `rollout_func` returns."
            )
    return [{**row, "tool_mask": mask} for row, mask in zip(inputs, masks, strict=True)]
