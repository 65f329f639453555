"""Stops training on all processes when a loss, gradient, weight or score becomes NaN or infinite, and names the
tensor.

This is a mixin of every trainer. Without it, transformers hides non-finite losses from the log and continues.
"""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn


# If gradients still overflow at a smaller loss scale than this, a smaller scale cannot help.
_SMALLEST_LOSS_SCALE = 1.0
_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StopOnNonFinite:
    """
    Mixin for trainers. It comes before TRL's class in the bases.

    A trainer passes its losses to `_checked_loss`. The losses of all batches of an update are checked together with
    the norm of the gradients, which the trainer computes anyway, so that an accelerator waits for the host only once
    per update. Weights are checked before the first update, and when `_check_weights` is called. The non-finite weight
    is searched only after a failure.

    With a gradient scaler (fp16), gradients may overflow as long as the scale is at least 1, because the scaler then
    reduces the scale.
    """

    _steps_before = 0  # updates of earlier rounds of the same run
    _weights_checked = False
    _unchecked_loss: Tensor | None = None  # sum of the losses since the last check

    def training_step(self, model, inputs, num_items_in_batch=None):
        """See [`~transformers.Trainer`]. The first call checks the weights."""
        if not self._weights_checked:
            self._check_weights()
        return super().training_step(model, inputs, num_items_in_batch)

    def _checked_loss(self, loss: Tensor) -> Tensor:
        """Returns the loss unchanged, and checks it on all processes before the update, or immediately in an
        evaluation. All processes must call it."""
        value = loss.detach().float()
        self._unchecked_loss = value if self._unchecked_loss is None else self._unchecked_loss + value
        # DeepSpeed updates the weights inside the backward pass of the last batch.
        if not self.model.training or (self.is_deepspeed_enabled and self.accelerator.sync_gradients):
            self._check_finite(None)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):  # seam
        # This runs after the clipping and before the optimizer step. The norm is the same on all processes.
        return self._check_finite(super()._get_grad_norm(model, grad_norm))

    def _check_finite(self, grad_norm: Tensor | float | None) -> float | None:
        """Checks the losses since the last check, and the norm of the gradients, which it returns as a float."""
        loss, self._unchecked_loss = self._unchecked_loss, None
        if loss is not None:
            loss = self.accelerator.reduce(loss, reduction="sum")
        if isinstance(grad_norm, Tensor):
            norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # FSDP2
            together = [norm.detach().float()] if loss is None else [loss, norm.detach().to(loss)]
            *first, grad_norm = torch.stack(together).tolist()
            loss = first[0] if first else None
        loss = loss.item() if isinstance(loss, Tensor) else loss
        if loss is not None and not math.isfinite(loss):
            raise self._not_finite("the loss", loss)
        if grad_norm is not None and not math.isfinite(grad_norm) and not self._scale_will_shrink():
            raise self._not_finite("the norm of the gradients", float(grad_norm))
        return grad_norm

    def _scale_will_shrink(self) -> bool:
        if self.is_deepspeed_enabled:  # DeepSpeed's engine has its own scale, and raises its own error
            return self.accelerator.mixed_precision == "fp16"
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= _SMALLEST_LOSS_SCALE

    def _check_weights(self) -> None:
        """Checks the weights that this process holds. All processes must call it."""
        weights = [weight for _, weight in _held_weights(self.model)]
        largest = torch.nn.utils.get_total_norm(weights, norm_type=math.inf)  # NaN if any weight is NaN
        largest = self.accelerator.reduce(largest.float().to(self.accelerator.device), reduction="sum").item()
        if not math.isfinite(largest):
            raise self._not_finite("a weight", largest)
        self._weights_checked = True

    def _not_finite(self, subject: str, value: float) -> FloatingPointError:
        return not_finite(subject, value, self.state.global_step + self._steps_before, self.model, self.accelerator)


def not_finite(
    subject: str, value: float, step: int | None, model: nn.Module | None, accelerator: Accelerator | None
) -> FloatingPointError:
    """
    Makes the error for a non-finite value. The message names the weights of the model that are not finite.

    Args:
        subject (`str`):
            Name of the value, e.g. `"the loss"`.
        value (`float`):
            The value, NaN or infinite.
        step (`int`, *optional*):
            Number of updates so far.
        model (`torch.nn.Module`, *optional*):
            Model that computed the value, if it is on this machine.
        accelerator ([`~accelerate.Accelerator`], *optional*):
            Needed if each process holds a part of the model. All processes must then call this function.

    Returns:
        `FloatingPointError`: the error to raise.
    """
    at = "" if step is None else f"Global step {step}: "
    message = f"{at}{subject} is {value}, expected a finite number."
    if model is None:
        return FloatingPointError(f"{message} Check the weights and the dtype of the reward model.")
    bad = [name for name, weight in _held_weights(model) if not bool(weight.isfinite().all())]
    if accelerator is not None:
        bad = list(dict.fromkeys(gather_object(bad)))
    if not bad:
        return FloatingPointError(
            f"{message} All weights of the model are finite. Check the inputs of the model, and try a smaller "
            "learning_rate, or bf16 or float32 instead of fp16."
        )
    more = f" and {len(bad) - 1} more" if bad[1:] else ""
    return FloatingPointError(
        f"{message} Not finite: the weight {bad[0]}{more}. Restart from a checkpoint or a model with finite weights, "
        "with a smaller learning_rate, or in bf16 or float32."
    )


def _held_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and values of the weights. For a sharded weight, the value is the part of this process."""
    held: list[tuple[str, Any]] = []
    for name, parameter in model.named_parameters():
        part = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
        part = part.to_local() if hasattr(part, "to_local") else part  # FSDP2
        if part.dtype in _CHECKED and part.device.type != "meta" and part.numel():
            held.append((name, part.detach()))
    return held
