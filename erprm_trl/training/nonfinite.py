"""A loss, gradient, weight or score that is not finite ends the training, on all processes at once and by name.

Mixed into every trainer. transformers leaves such losses out of what it logs and trains on.
"""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn


# Below it even gradients that are scaled down overflow: no smaller scale will help.
_SMALLEST_LOSS_SCALE = 1.0
_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StopOnNonFinite:
    """
    Mixin of trainers, before TRL's class. A trainer hands its losses to `_checked_loss`; gradients are checked by
    their norm, which is computed anyway, and weights before the first update and wherever `_check_weights` is called.
    Only after a failure is it looked for which weight it was.

    With a gradient scaler (fp16) gradients may overflow, for then it makes its scale smaller, until that is below 1.
    """

    _steps_before = 0  # of earlier rounds of the same run
    _weights_checked = False

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in [`~transformers.Trainer`]; at first the weights are checked."""
        if not self._weights_checked:
            self._check_weights()
        return super().training_step(model, inputs, num_items_in_batch)

    def _checked_loss(self, loss: Tensor) -> Tensor:
        """The loss as it is. All processes call it together."""
        total = self.accelerator.reduce(loss.detach().float(), reduction="sum").item()
        if not math.isfinite(total):
            raise self._not_finite("the loss", total)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):  # seam
        # After the clipping and before the optimizer's step; the same number on all processes.
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and not math.isfinite(grad_norm) and not self._scale_will_shrink():
            raise self._not_finite("the norm of the gradients", float(grad_norm))
        return grad_norm

    def _scale_will_shrink(self) -> bool:
        if self.is_deepspeed_enabled:  # its engine has a scale of its own, and gives up by itself
            return self.accelerator.mixed_precision == "fp16"
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= _SMALLEST_LOSS_SCALE

    def _check_weights(self) -> None:
        """One pass over the weights that this process holds. All processes call it together."""
        weights = [weight for _, weight in _held_weights(self.model)]
        largest = torch.nn.utils.get_total_norm(weights, norm_type=math.inf)  # NaN where one is
        largest = self.accelerator.reduce(largest.float().to(self.accelerator.device), reduction="sum").item()
        if not math.isfinite(largest):
            raise self._not_finite("a weight", largest)
        self._weights_checked = True

    def _not_finite(self, what: str, value: float) -> FloatingPointError:
        return not_finite(what, value, self.state.global_step + self._steps_before, self.model, self.accelerator)


def not_finite(
    what: str, value: float, step: int | None, model: nn.Module | None, accelerator: Accelerator | None
) -> FloatingPointError:
    """
    The error that says what is not finite, and which of a model's weights are to blame.

    Args:
        what (`str`), value (`float`):
            What it is, and what it was.
        step (`int`, *optional*):
            Updates that have been made.
        model (`torch.nn.Module`, *optional*):
            The model that gave it, if it is here.
        accelerator ([`~accelerate.Accelerator`], *optional*):
            If processes hold parts of the model; then all of them call this together.
    """
    at = "" if step is None else f"Global step {step}: "
    message = f"{at}{what} is {value}, expected a finite number."
    if model is None:
        return FloatingPointError(f"{message} Look at the reward model's weights and dtype.")
    bad = [name for name, weight in _held_weights(model) if not bool(weight.isfinite().all())]
    if accelerator is not None:
        bad = list(dict.fromkeys(gather_object(bad)))
    if not bad:
        return FloatingPointError(
            f"{message} All weights of the model are finite: look at what it was given, and try a smaller "
            "learning_rate, or bf16 or float32 instead of fp16."
        )
    more = f" and {len(bad) - 1} more" if bad[1:] else ""
    return FloatingPointError(
        f"{message} Not finite: the weight {bad[0]}{more}. Go back to weights that are finite, a checkpoint or the "
        "model that was loaded, with a smaller learning_rate or in bf16 or float32."
    )


def _held_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and values of the weights, of those that are split this process's part."""
    held: list[tuple[str, Any]] = []
    for name, parameter in model.named_parameters():
        part = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
        part = part.to_local() if hasattr(part, "to_local") else part  # FSDP2
        if part.dtype in _CHECKED and part.device.type != "meta" and part.numel():
            held.append((name, part.detach()))
    return held
