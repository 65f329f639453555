"""Tokens a second and model FLOP/s utilisation (MFU) of a training, whatever trainer counts its batches here."""

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


logger = logging.getLogger(__name__)

# Dense bf16 peaks in TFLOP/s from the makers' data sheets; the first name that the device's own name holds.
PEAKS = (
    ("GB200", 2500), ("B200", 2250), ("H200", 989), ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989),
    ("H800", 989), ("H20", 148), ("A100", 312), ("A800", 312), ("A30", 165), ("A40", 150), ("A10G", 70), ("A10", 125),
    ("L40S", 362), ("L40", 181), ("L4", 121), ("RTX 6000 Ada", 364), ("RTX A6000", 155), ("RTX 4090", 165),
    ("RTX 3090", 71), ("MI300X", 1307), ("MI250X", 383),
)  # fmt: skip


class Peak(NamedTuple):
    """What a device can do in a second, `flops`, and whether that was `measured` here or is a table's."""

    flops: float
    measured: bool


class ModelSize(NamedTuple):
    """
    What a model's FLOPs depend on: `matrices`, the parameters of all but the embeddings and the output head, `head`,
    those of the output head, `trainable_matrices` and `trainable_head`, the part of them that is trained, and
    `attention`, layers × heads × the dimension of a head.
    """

    matrices: int
    head: int
    trainable_matrices: int
    trainable_head: int
    attention: int

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSize | None":
        """Of a transformers or PEFT model; `None` for a mixture of experts, of which a token uses a part."""
        config = model.config.get_text_config()
        experts = ("num_experts", "num_local_experts", "n_routed_experts")
        if any((getattr(config, name, None) or 1) > 1 for name in experts):
            return None
        embeddings = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        output = model.get_output_embeddings()
        head = list(output.parameters()) if output is not None else []
        apart = embeddings | {id(parameter) for parameter in head}
        matrices = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        heads = getattr(config, "num_attention_heads", 0)
        width = (getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)) * heads
        return cls(
            _number(matrices),
            _number(head),
            _number(parameter for parameter in matrices if parameter.requires_grad),
            _number(parameter for parameter in head if parameter.requires_grad),
            getattr(config, "num_hidden_layers", 0) * width,
        )

    def training_flops(self, tokens: float, squared_lengths: float, logit_tokens: float) -> float:
        """
        Of a forward and a backward pass, nothing computed again.

        `(4 N + 2 N') tokens + 12 L H Q sum_i T_i^2 + (4 V + 2 V') logit_tokens`, with N matrix parameters and V of the
        output head, N' and V' those of them that are trained, L layers of H heads of dimension Q, and T_i the
        sequences' lengths.

        Args:
            tokens (`float`):
                Tokens in all, padding not counted: the sum of the lengths.
            squared_lengths (`float`):
                The sum of the squares of the sequences' lengths.
            logit_tokens (`float`):
                Tokens whose logits the loss needs.

        Returns:
            `float`: floating-point operations.

        Limits: everything trained and logits everywhere, it is PaLM's `(6 N + 12 L H Q T)` a token, V being part of
        its N. A frozen matrix needs no gradient of its own: 4 instead of 6; the adapters beside it are part of N'.

        Source: Chowdhery et al. (2022), PaLM, appendix B; as there, causal attention is not halved.
        """
        return (
            (4 * self.matrices + 2 * self.trainable_matrices) * tokens
            + 12 * self.attention * squared_lengths
            + (4 * self.head + 2 * self.trainable_head) * logit_tokens
        )


class Throughput(TrainerCallback):
    """
    Counts what a trainer trains on and times it: `perf/tokens_per_second`, of all processes together, and `perf/mfu`.

    The time is that of the training loop between two logs without evaluating and saving; of a policy it includes
    sampling and scoring, whose operations are not counted. So `perf/mfu` is the share of the peak that learning itself
    used, and low where sampling takes long. `perf/peak_tflops` is the peak of one device that it refers to, from a
    table of GPUs (dense bf16) or, on other devices, measured once; the log says which.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            What is trained, before it is wrapped.
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.
        dtype (`torch.dtype`):
            What the training computes in; for a measured peak.
        clock (`Callable`, *optional*):
            Seconds from some start.
        peak ([`Peak`], *optional*):
            The device's, if it is known better.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator,
        dtype: torch.dtype,
        clock: Callable[[], float] = time.perf_counter,
        peak: Peak | None = None,
    ):
        self.accelerator, self.dtype, self.clock = accelerator, dtype, clock
        self.size = ModelSize.of(model)
        self._peak = peak
        self._mark: float | None = None
        self._forget()

    def count(self, lengths: Tensor, logit_mask: Tensor | None = None) -> None:
        """
        Adds a batch of this process that is trained on; waits for no device.

        Args:
            lengths (`torch.Tensor`):
                (B,), tokens of each sequence, padding not counted.
            logit_mask (`torch.Tensor`, *optional*):
                Not 0 at tokens whose logits the loss needs. Without it the head is not counted.
        """
        logit_tokens = torch.zeros_like(lengths).sum() if logit_mask is None else logit_mask.sum()
        counts = torch.stack([lengths.sum(), lengths.square().sum(), logit_tokens]).long()
        self._counts = counts if self._counts is None else self._counts + counts

    def metrics(self) -> dict[str, float]:
        """Since the last call; all processes call it together."""
        if self._counts is None or self._seconds <= 0:
            return {}
        tokens, squares, logit_tokens = self.accelerator.reduce(self._counts, reduction="sum").tolist()
        metrics = {"perf/tokens_per_second": tokens / self._seconds}
        if self.size is not None:
            flops = self.size.training_flops(tokens, squares, logit_tokens) / self._seconds
            metrics["perf/mfu"] = flops / (self.peak.flops * self.accelerator.num_processes)
            metrics["perf/peak_tflops"] = self.peak.flops / 1e12
        self._forget()
        return metrics

    @property
    def peak(self) -> Peak:
        """The device's, found when it is first needed."""
        if self._peak is None:
            self._peak = device_peak(self.accelerator.device, self.dtype)
            if self.accelerator.is_main_process:
                source = f"measured by a product in {self.dtype}" if self._peak.measured else "dense bf16, data sheet"
                logger.info("perf/mfu refers to %.4g TFLOP/s a device: %s.", self._peak.flops / 1e12, source)
        return self._peak

    # A step's time ends with it. What evaluating and saving take lies between its end and their own events.
    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self._mark = self.clock()
        self._forget()

    def on_step_end(self, args, state, control, **kwargs):
        """Takes the time of a step."""
        now = self.clock()
        self._seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, args, state, control, **kwargs):
        """Leaves the time of an evaluation out."""
        self._mark = self.clock()

    on_predict = on_save = on_evaluate

    def _forget(self) -> None:
        self._counts: Tensor | None = None
        self._seconds = 0.0


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """A known GPU's dense bf16 peak, or the best of some square matrix products on this device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((teraflops for part, teraflops in PEAKS if part.lower() in name.lower()), None)
        if known is not None:
            return Peak(known * 1e12, measured=False)
    size = 512 if device.type == "cpu" else 8192
    factor = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Peak(2 * size**3 / min(seconds[1:]), measured=True)


def _number(parameters) -> int:
    return sum(math.prod(_shape(parameter)) for parameter in parameters)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    # Partitioned by ZeRO-3 or packed into 4 bits, a parameter holds fewer elements than its matrix has.
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)
