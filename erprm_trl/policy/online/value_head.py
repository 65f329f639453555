"""The critic of step PPO: a value head on the policy's last hidden state, computed in the policy's own forward pass.

The head is a submodule of the policy, so that DDP, ZeRO and the optimizer include it. It is not part of weights that
are saved or sent to vLLM. Checkpoints store it in a separate file.
"""

import inspect
import logging
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from trl import SyncRefModelCallback

from ..._trl import FusedCausalLMOutput


logger = logging.getLogger(__name__)

NAME = "value_head"
VALUE_HEAD_FILE = "value_head.safetensors"


@dataclass
class FusedOutputWithValues(FusedCausalLMOutput):
    """TRL's output with the additional field `state_values`. It must be a field, because wrappers (DDP, autocast)
    rebuild outputs from their fields."""

    state_values: Tensor | None = None


class ValueHead(nn.Module):
    """
    A linear head that gives one or two values per position, in float32 with every dtype of the policy. All initial
    values are 0.

    Args:
        hidden_size (`int`):
            Size of the policy's hidden state.
        num_values (`int`, *optional*, defaults to `1`):
            1, or 2 for another value of rows without an outcome, see [`values_of_rows`].
    """

    def __init__(self, hidden_size: int, num_values: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_values, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(num_values, dtype=torch.float32))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns the values, of shape (B, T) or (B, T, 2), of hidden states (B, T, H)."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), self.weight.float(), self.bias.float()).squeeze(-1)

    def keep_first(self) -> None:
        """Removes the value of rows without an outcome. Call it before the optimizer is created."""
        self.weight, self.bias = (nn.Parameter(part.detach()[:1].clone()) for part in (self.weight, self.bias))


def values_of_rows(values: Tensor, lacks_outcome: Tensor | None) -> Tensor:
    """
    Selects the value of each row's own kind of return.

    The return of a row with an outcome is the sum of its later step rewards and of its outcome. The return of a row
    without an outcome is the sum of its later step rewards alone. A critic with one value would learn a mean of the
    two, and rows without an outcome would get advantages as if their outcome was 0.

    Args:
        values (`torch.Tensor`):
            Values of shape (B, T), or (B, T, 2) with the value of rows without an outcome last.
        lacks_outcome (`torch.Tensor` or `None`):
            Booleans of shape (B,), for two values.

    Returns:
        `torch.Tensor`: values of shape (B, T).
    """
    return values if values.ndim == 2 else torch.where(lacks_outcome[:, None], values[..., 1], values[..., 0])


def attach_value_head(policy, num_values: int = 1) -> ValueHead:
    """
    Adds a value head to a policy with TRL's fused LM head. The output of `policy(..., fused_lm_head=True)` then also
    has `state_values` (B, T - 1), the value of the state in which each token was chosen. With two values, its shape is
    (B, T - 1, 2).

    Args:
        policy ([`~transformers.PreTrainedModel`]):
            Causal language model. With PEFT, this is the base model.
        num_values (`int`, *optional*, defaults to `1`):
            See [`ValueHead`].

    Returns:
        [`ValueHead`]: the new value head.
    """
    head = ValueHead(policy.config.get_text_config().hidden_size, num_values).to(policy.device)
    policy.add_module(NAME, head)
    names = [f"{NAME}.{name}" for name, _ in head.named_parameters()]
    policy._keys_to_ignore_on_save = {*(policy._keys_to_ignore_on_save or ()), *names}
    fused_forward = policy.forward

    def forward(self, *args, fused_lm_head=False, **kwargs):
        if not fused_lm_head:
            return fused_forward(*args, **kwargs)
        # Only the fused head gets the last hidden state, so a hook reads it during the call.
        seen = []
        hook = self.base_model.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            output = fused_forward(*args, fused_lm_head=True, **kwargs)
        finally:
            hook.remove()
        hidden = seen[-1].last_hidden_state[:, :-1]
        return FusedOutputWithValues(**output, state_values=getattr(self, NAME)(hidden.to(head.weight.device)))

    forward.__signature__ = inspect.signature(fused_forward)  # `generate` validates its arguments with it
    policy.forward = types.MethodType(forward, policy)
    return head


@contextmanager
def without_value_head(policy):
    """Removes the value head inside this context, so that code that iterates over the policy's parameters (the sync to
    vLLM) skips it."""
    head = policy._modules.pop(NAME)
    try:
        yield
    finally:
        policy._modules[NAME] = head


class SyncRefModelWithoutHead(SyncRefModelCallback):
    """
    Mixes the policy's weights into the reference model, which has no value head.

    Args:
        policy ([`~transformers.PreTrainedModel`]):
            Policy with a value head. With PEFT, this is the base model.
        ref_model, accelerator:
            As in [`~trl.SyncRefModelCallback`].
    """

    def __init__(self, policy, ref_model, accelerator):
        super().__init__(ref_model, accelerator)
        self.policy = policy

    def on_step_end(self, args, state, control, **kwargs):
        """Synchronises the reference model every `ref_model_sync_steps` updates."""
        with without_value_head(self.policy):
            super().on_step_end(args, state, control, **kwargs)


def save_value_head(head: ValueHead, folder: str) -> None:
    """Saves the head in a checkpoint."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()},
        Path(folder, VALUE_HEAD_FILE),
    )


def load_value_head(head: ValueHead, folder: str) -> None:
    """
    Loads the head from a checkpoint. A head with two values keeps only the first if the checkpoint has one value,
    because an earlier version has written it. A warning is logged then.

    Raises:
        `FileNotFoundError`: if the checkpoint has no head, because it is not from step PPO with `critic="head"`.
    """
    path = Path(folder, VALUE_HEAD_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {VALUE_HEAD_FILE}, expected a checkpoint of StepPPOTrainer with critic='head'. Resume "
            "from another checkpoint, or start a new run from its weights with model=<the checkpoint>."
        )
    saved = load_file(path)
    if len(saved["weight"]) < len(head.weight):
        head.keep_first()
        logger.warning(
            "%s has a critic with one value, from an earlier version. Rows without an answer continue to count as "
            "outcome 0 in this run. Start a new run from its weights, with model=<the checkpoint>, to change that.",
            folder,
        )
    head.load_state_dict(saved)
