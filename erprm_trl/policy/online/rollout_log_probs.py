"""Runs the policy that sampled a batch over this batch, for the log-probabilities of its tokens at the rollout."""

from typing import Any

import torch
from torch import Tensor

from ...reward_model.attention import known_padding


# Inputs of models that read images. TRL's batch holds them under the names of its own parameters.
IMAGE_INPUTS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def rollout_log_probs(trainer, output: dict[str, Any]) -> Tensor:
    """
    Log-probabilities of the completions under the policy that sampled them.

    Args:
        trainer ([`StepTrainer`]):
            The trainer that has sampled the completions.
        output (`dict[str, Any]`):
            TRL's batch. It has the log-probabilities only if the policy may change before their update. Otherwise the
            policy runs here.

    Returns:
        `torch.Tensor`: log-probabilities (B, T).
    """
    if "old_per_token_logps" in output:
        return output["old_per_token_logps"]
    args = trainer.args
    with torch.no_grad(), known_padding():
        logps, *_ = trainer._get_per_token_logps_and_entropies(  # seam
            trainer.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
            output["completion_ids"].shape[1],
            batch_size=args.per_device_train_batch_size if trainer.model.training else args.per_device_eval_batch_size,
            **{name: output[name] for name in IMAGE_INPUTS if name in output},
        )
    return logps
