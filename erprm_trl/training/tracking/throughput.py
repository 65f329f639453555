"""Measures tokens per second and model FLOP/s utilisation (MFU) of training. Used by all trainers."""

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


logger = logging.getLogger(__name__)

# Dense bf16 peaks in TFLOP/s from the vendors' data sheets. The first entry that is part of the device name counts.
PEAKS = (
    ("GB200", 2500), ("B200", 2250), ("H200", 989), ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989),
    ("H800", 989), ("H20", 148), ("A100", 312), ("A800", 312), ("A30", 165), ("A40", 150), ("A10G", 70), ("A10", 125),
    ("L40S", 362), ("L40", 181), ("L4", 121), ("RTX 6000 Ada", 364), ("RTX A6000", 155), ("RTX 4090", 165),
    ("RTX 3090", 71), ("MI300X", 1307), ("MI250X", 383),
)  # fmt: skip


class Peak(NamedTuple):
    """Peak FLOP/s of a device, and whether the peak was measured here (`True`) or comes from the table (`False`)."""

    flops: float
    measured: bool


class ModelSize(NamedTuple):
    """
    Sizes of a model that determine its FLOPs.

    Attributes:
        matrices (`int`):
            Number N of parameters, without the embeddings and the output head.
        head (`int`):
            Number V of parameters of the output head.
        trainable_matrices (`int`):
            Number N' of trainable parameters among `matrices`.
        trainable_head (`int`):
            Number V' of trainable parameters among `head`.
        attention (`int`):
            Product of the number L of layers, the number H of heads and the dimension Q of a head.
    """

    matrices: int
    head: int
    trainable_matrices: int
    trainable_head: int
    attention: int

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSize | None":
        """Reads the sizes of a transformers or PEFT model. `None` for a mixture of experts, where each token uses only
        a part of the parameters."""
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
            _count(matrices),
            _count(head),
            _count(parameter for parameter in matrices if parameter.requires_grad),
            _count(parameter for parameter in head if parameter.requires_grad),
            getattr(config, "num_hidden_layers", 0) * width,
        )

    def training_flops(self, tokens: float, squared_lengths: float, logit_tokens: float) -> float:
        """
        FLOPs of a forward and a backward pass, without recomputation.

        `(4 N + 2 N') tokens + 12 L H Q sum_i T_i^2 + (4 V + 2 V') logit_tokens`, where T_i are the lengths of the
        sequences. The other symbols are explained in [`ModelSize`].

        Args:
            tokens (`float`):
                Number of tokens without padding, the sum of the T_i.
            squared_lengths (`float`):
                Sum of the squared lengths T_i of the sequences.
            logit_tokens (`float`):
                Number of tokens for which the loss needs logits.

        Returns:
            `float`: number of floating-point operations.

        Limits: if all parameters are trained and logits are computed for all tokens, this is PaLM's
        `(6 N + 12 L H Q T)` per token, where PaLM's N includes V. A frozen matrix has no weight gradient, so it needs
        4 FLOPs per parameter and token instead of 6. Adapters are part of N'.

        Source: Chowdhery et al. (2022), PaLM, appendix B. As in PaLM, causal attention is not halved.
        """
        return (
            (4 * self.matrices + 2 * self.trainable_matrices) * tokens
            + 12 * self.attention * squared_lengths
            + (4 * self.head + 2 * self.trainable_head) * logit_tokens
        )


class Throughput(TrainerCallback):
    """
    Counts the tokens of the training batches and measures the time: `perf/tokens_per_second` over all processes, and
    `perf/mfu`.

    The time is the time of the training loop between two logs, without evaluation and saving. When a policy is
    trained, it includes sampling and scoring, but their FLOPs are not counted. `perf/mfu` is therefore the share of
    the peak that the updates use, and is low if sampling takes long. `perf/peak_tflops` is the peak of one device on
    which `perf/mfu` is based. It comes from a table of GPUs (dense bf16), or is measured once on other devices. The
    log states which.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model that is trained, before it is wrapped.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        dtype (`torch.dtype`):
            Dtype in which the peak is measured, if it is measured.
        clock (`Callable`, *optional*):
            Function that returns the time in seconds.
        peak ([`Peak`], *optional*):
            Peak of the device. Defaults to the table or the measurement.
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
        Adds a training batch of this process. Does not synchronise with the device.

        Args:
            lengths (`torch.Tensor`):
                Number of tokens of each sequence without padding, (B,).
            logit_mask (`torch.Tensor`, *optional*):
                Non-zero at tokens for which the loss needs logits, or their number per sequence. Without it, the head
                is not counted.
        """
        logit_tokens = torch.zeros_like(lengths).sum() if logit_mask is None else logit_mask.sum()
        counts = torch.stack([lengths.sum(), lengths.square().sum(), logit_tokens]).long()
        self._counts = counts if self._counts is None else self._counts + counts

    def metrics(self) -> dict[str, float]:
        """The metrics since the last call. All processes must call it."""
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
        """Peak of the device, determined on first use."""
        if self._peak is None:
            self._peak = device_peak(self.accelerator.device, self.dtype)
            if self.accelerator.is_main_process:
                source = f"measured with {self.dtype} matrices" if self._peak.measured else "dense bf16, data sheet"
                logger.info("perf/mfu is based on %.4g TFLOP/s per device (%s).", self._peak.flops / 1e12, source)
        return self._peak

    # The clock is reset after each step, and again after evaluation and saving, so that their time is left out.
    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self._mark = self.clock()
        self._forget()

    def on_step_end(self, args, state, control, **kwargs):
        """Adds the time of a step."""
        now = self.clock()
        self._seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, args, state, control, **kwargs):
        """Leaves out the time of an evaluation."""
        self._mark = self.clock()

    on_predict = on_save = on_evaluate

    def _forget(self) -> None:
        self._counts: Tensor | None = None
        self._seconds = 0.0


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The dense bf16 peak of a known GPU, or the peak measured with square matrix products on this device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((teraflops for part, teraflops in PEAKS if part.lower() in name.lower()), None)
        if known is not None:
            return Peak(known * 1e12, measured=False)
    size = 512 if device.type == "cpu" else 8192
    factor = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first product is a warm-up
        start = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Peak(2 * size**3 / min(seconds[1:]), measured=True)


def _count(parameters) -> int:
    return sum(math.prod(_shape(parameter)) for parameter in parameters)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    # A parameter that is partitioned by ZeRO-3 or packed into 4 bits has fewer elements than its matrix.
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)
