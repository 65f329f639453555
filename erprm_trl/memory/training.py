"""Estimates the bytes that training needs on each GPU, for weights, gradients, optimizer, buffers, activations and
logits.

Pure arithmetic over the sizes of a Llama-style model. The CUDA context and fragmentation are not included.
"""

from .activations import layer_activation_bytes, logit_bytes, saved_activation_bytes
from .architecture import LINEARS, Architecture, count_linear_weights, count_lora_parameters, count_parameters


PRECISIONS = ("float32", "mixed", "bfloat16")

# DeepSpeed's defaults, in elements: the size of a gradient bucket, and the weights that ZeRO-3 keeps gathered plus the
# weights that it prefetches.
REDUCE_BUCKET = 500_000_000
LIVE_WEIGHTS = 1_000_000_000 + 50_000_000


def state_bytes(
    trainable: int,
    frozen: int = 0,
    *,
    precision: str = "mixed",
    zero_stage: int = 0,
    num_gpus: int = 1,
    optimizer_values: int = 2,
) -> dict[str, int]:
    r"""
    Bytes of weights, gradients and optimizer states on each of N GPUs.

    | stage | weights | gradients | optimizer |
    |---|---|---|---|
    | stage 0 (one GPU, DDP) | w P | w T | k w T |
    | ZeRO-1 | w P | w T | (4 + 4 k) T / N |
    | ZeRO-2 | w P | w T / N | (4 + 4 k) T / N |
    | ZeRO-3 | w P / N | w T / N | (4 + 4 k) T / N |

    P is the number of all parameters, T the number of trainable parameters, k the number of optimizer values per
    trainable parameter, and w the number of bytes per weight (2 for `"bfloat16"`, else 4). DeepSpeed always trains a
    float32 copy, which is the 4 in (4 + 4 k). At stage 0, adapters (`frozen` > 0) on bfloat16 weights are float32, as
    in PEFT.

    Args:
        trainable (`int`):
            Number T of trainable parameters, at least 0.
        frozen (`int`, *optional*, defaults to `0`):
            Number P - T of frozen parameters.
        precision (`str`, *optional*, defaults to `"mixed"`):
            `"float32"`, `"mixed"` (float32 weights under bfloat16 autocast) or `"bfloat16"` (bfloat16 weights). With
            DeepSpeed, `mixed_precision: bf16` is `"bfloat16"`.
        zero_stage (`int`, *optional*, defaults to `0`):
            ZeRO stage: 0, 1, 2 or 3.
        num_gpus (`int`, *optional*, defaults to `1`):
            Number N of data-parallel processes.
        optimizer_values (`int`, *optional*, defaults to `2`):
            Number k of optimizer values per trainable parameter: 2 for Adam, 1 for momentum, 0 for plain SGD.

    Returns:
        `dict[str, int]`: `parameters`, `gradients` (kept between the micro-batches of an update) and `optimizer`.

    Limits: for T = P in bfloat16, the paper's 16P without ZeRO, which includes a float32 copy, is `zero_stage=1,
    num_gpus=1`. The paper's 4P + 12P/N, 2P + 14P/N and 16P/N per GPU are stages 1, 2 and 3.

    Raises:
        `ValueError`: for an unknown precision or stage.

    Source: Rajbhandari et al., ZeRO (1910.02054), sections 3.1 and 5, figure 1.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}. Pass one of these.")
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage: got {zero_stage}, expected 0, 1, 2 or 3. Pass one of these.")
    size = 2 if precision == "bfloat16" else 4
    own = 4 if zero_stage == 0 and frozen else size
    optimizer = optimizer_values * own if zero_stage == 0 else 4 + 4 * optimizer_values
    parts = num_gpus if zero_stage else 1
    states, gradients, weights, frozen_weights = (
        -(-elements // parts) if zero_stage >= stage else elements
        for elements, stage in ((trainable, 1), (trainable, 2), (trainable, 3), (frozen, 3))
    )
    return {
        "parameters": own * weights + size * frozen_weights,
        "gradients": own * gradients,
        "optimizer": optimizer * states,
    }


def buffer_bytes(
    architecture: Architecture,
    trainable: int,
    batch_size: int,
    length: int,
    *,
    precision: str = "mixed",
    zero_stage: int = 0,
    num_gpus: int = 1,
) -> dict[str, int]:
    """
    Bytes of temporary buffers during an update, each at its largest.

    Args:
        architecture, batch_size, length, precision:
            See [`layer_activation_bytes`].
        trainable, zero_stage, num_gpus:
            See [`state_bytes`].

    Returns:
        `dict[str, int]`: `weight_copies` (autocast's copies of all linear weights), `gathered_weights` (ZeRO-3),
        `reduction` (DDP's buckets, or one bucket of DeepSpeed, or two with ZeRO-3, which overlaps them),
        `step_gradients` (each process's part of DeepSpeed's float32 gradients in the optimizer step) and `backward`
        (gradients of the three intermediate values of an MLP, and the gradient of the embedding before it is
        accumulated).
    """
    a, size = architecture, 2 if precision == "bfloat16" else 4
    compute = 4 if precision == "float32" else 2
    bucket = size * min(trainable, REDUCE_BUCKET)
    reduction = {0: size * trainable * (num_gpus > 1), 1: bucket, 2: bucket, 3: 2 * bucket}[zero_stage]
    embedding = a.vocab_size * a.hidden_size
    return {
        "weight_copies": 2 * count_linear_weights(a) if precision == "mixed" else 0,
        "gathered_weights": size * min(count_parameters(a), LIVE_WEIGHTS) if zero_stage == 3 else 0,
        "reduction": reduction,
        "step_gradients": -(-4 * trainable // num_gpus) if zero_stage else 0,
        "backward": 3 * compute * batch_size * length * a.intermediate_size
        + size * embedding * (trainable > embedding),
    }


def memory_per_gpu(
    architecture: Architecture,
    batch_size: int,
    length: int,
    *,
    precision: str = "mixed",
    zero_stage: int = 0,
    num_gpus: int = 1,
    offload_optimizer: bool = False,
    offload_weights: bool = False,
    gradient_checkpointing: bool = True,
    padded: bool = True,
    head: str = "steps",
    lora_rank: int = 0,
    lora_targets=LINEARS,
    optimizer_values: int = 2,
    other_bytes: int = 0,
) -> dict[str, int]:
    """
    Estimates all memory that training needs on each GPU.

    Args:
        architecture, batch_size, length, precision, padded, lora_rank, lora_targets:
            See [`layer_activation_bytes`].
        zero_stage, num_gpus, optimizer_values:
            See [`state_bytes`].
        offload_optimizer, offload_weights (`bool`, *optional*, defaults to `False`):
            Whether DeepSpeed keeps the optimizer states and gradients (from stage 2), or the weights (stage 3), in the
            memory of the host.
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            See [`saved_activation_bytes`].
        head (`str`, *optional*, defaults to `"steps"`):
            See [`logit_bytes`].
        other_bytes (`int`, *optional*, defaults to `0`):
            Bytes of other models on the GPU, e.g. the reward model of a policy.

    Returns:
        `dict[str, int]`: `parameters`, `gradients`, `optimizer`, `activations`, `logits`, `buffers`, `other`, their
        sum `total`, and `host`, the bytes in the memory of the host per GPU. The total is an upper bound, because the
        activations are freed before the buffers of the optimizer step are allocated.

    Raises:
        `ValueError`: if the ZeRO stage does not support the offload.
    """
    if offload_optimizer and zero_stage < 2 or offload_weights and zero_stage < 3:
        raise ValueError(
            f"zero_stage: got {zero_stage}, expected 2 or 3 to offload the optimizer, and 3 to offload weights. Raise "
            "the stage, or do not offload."
        )
    num_parameters = count_parameters(architecture)
    trainable = count_lora_parameters(architecture, lora_rank, lora_targets) if lora_rank else num_parameters
    sizes = {"precision": precision, "zero_stage": zero_stage, "num_gpus": num_gpus}
    frozen = num_parameters if lora_rank else 0
    report = state_bytes(trainable, frozen, optimizer_values=optimizer_values, **sizes)
    layer = {"precision": precision, "padded": padded, "lora_rank": lora_rank, "lora_targets": lora_targets}
    report["activations"] = saved_activation_bytes(
        architecture, batch_size, length, gradient_checkpointing=gradient_checkpointing, **layer
    )
    if gradient_checkpointing:
        report["activations"] += layer_activation_bytes(architecture, batch_size, length, **layer)
    report["logits"] = logit_bytes(architecture, batch_size, length, head=head, precision=precision)
    buffers = buffer_bytes(architecture, trainable, batch_size, length, **sizes)
    host = 0
    for moved, rows in ((offload_optimizer, ("optimizer", "gradients")), (offload_weights, ("parameters",))):
        for row in rows if moved else ():
            host, report[row] = host + report[row], 0
    if offload_optimizer:
        host += buffers.pop("step_gradients")
    report |= {"buffers": sum(buffers.values()), "other": other_bytes}
    return {**report, "total": sum(report.values()), "host": host}
