"""How many bytes a training holds on each GPU: weights, gradients, optimizer, buffers, activations and logits.

Pure arithmetic over the sizes of a Llama-style model. Memory that the allocator adds (CUDA's context, fragments) is
not included.
"""

from .activations import layer_activation_bytes, logit_bytes, saved_activation_bytes
from .architecture import LINEARS, Architecture, count_linear_weights, count_lora_parameters, count_parameters


PRECISIONS = ("float32", "mixed", "bfloat16")

# DeepSpeed's defaults, in elements: a bucket of gradients, and the weights that ZeRO-3 keeps gathered with the next
# ones under way.
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
    Bytes of weights, gradients and optimizer on each of N GPUs.

    | | weights | gradients | optimizer |
    |---|---|---|---|
    | stage 0 (one GPU, DDP) | w P | w T | k w T |
    | ZeRO-1 | w P | w T | (4 + 4 k) T / N |
    | ZeRO-2 | w P | w T / N | (4 + 4 k) T / N |
    | ZeRO-3 | w P / N | w T / N | (4 + 4 k) T / N |

    with P all and T the trainable parameters, k values an optimizer keeps of each (Adam: 2) and w bytes a weight: 2
    with `"bfloat16"`, else 4. DeepSpeed trains a float32 copy, the 4 in (4 + 4 k), whatever the weights are. Adapters
    (`frozen` > 0) on bfloat16 weights are float32 at stage 0, as PEFT makes them.

    Args:
        trainable (`int`):
            T, at least 0.
        frozen (`int`, *optional*, defaults to `0`):
            P - T.
        precision (`str`, *optional*, defaults to `"mixed"`):
            `"float32"`; `"mixed"`, float32 weights under bfloat16 autocast; `"bfloat16"` weights, which is also what
            `mixed_precision: bf16` means to DeepSpeed.
        zero_stage (`int`, *optional*, defaults to `0`):
            0, 1, 2 or 3.
        num_gpus (`int`, *optional*, defaults to `1`):
            N, processes of the data parallelism.
        optimizer_values (`int`, *optional*, defaults to `2`):
            k: 2 for Adam, 1 for momentum, 0 for plain SGD.

    Returns:
        `dict[str, int]`: `parameters`, `gradients` (held between the micro-batches of an update) and `optimizer`.

    Limits: for T = P in bfloat16 the paper's 16 P at stage 0 with a float32 copy is `zero_stage=1, num_gpus=1`; its
    per-GPU 4P + 12P/N, 2P + 14P/N and 16P/N are stages 1, 2 and 3.

    Raises:
        `ValueError`: for an unknown precision or stage.

    Source: Rajbhandari et al., ZeRO (1910.02054), sections 3.1 and 5, figure 1.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage: got {zero_stage}, expected 0, 1, 2 or 3.")
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
    Bytes of what comes and goes during an update, each at its largest.

    Args:
        architecture, batch_size, length, precision:
            See [`layer_activation_bytes`].
        trainable, zero_stage, num_gpus:
            See [`state_bytes`].

    Returns:
        `dict[str, int]`: `weight_copies` (autocast's, of all linear weights), `gathered_weights` (ZeRO-3), `reduction`
        (DDP's buckets; DeepSpeed's bucket, two of them where ZeRO-3 overlaps), `step_gradients` (DeepSpeed's float32
        share at the step), `backward` (gradients of the MLP's three products, and of the embedding before it is added
        to what there is).
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
    Everything that a training holds on each GPU.

    Args:
        architecture, batch_size, length, precision, padded, lora_rank, lora_targets:
            See [`layer_activation_bytes`].
        zero_stage, num_gpus, optimizer_values:
            See [`state_bytes`].
        offload_optimizer, offload_weights (`bool`, *optional*, defaults to `False`):
            DeepSpeed's: optimizer and gradients (from stage 2) or the shares of weights (stage 3) are the host's.
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            See [`saved_activation_bytes`].
        head (`str`, *optional*, defaults to `"steps"`):
            See [`logit_bytes`].
        other_bytes (`int`, *optional*, defaults to `0`):
            Other models on the GPU, a policy's reward model say.

    Returns:
        `dict[str, int]`: `parameters`, `gradients`, `optimizer`, `activations`, `logits`, `buffers`, `other`, `total`,
        the sum of these, and `host`, bytes in the host's memory for each GPU. The total is an upper bound: activations
        are gone before the step's buffers come.

    Raises:
        `ValueError`: for an offload that the stage does not have.
    """
    if offload_optimizer and zero_stage < 2 or offload_weights and zero_stage < 3:
        raise ValueError(
            f"zero_stage: got {zero_stage}, expected 2 or 3 to offload the optimizer and 3 to offload weights."
        )
    everything = count_parameters(architecture)
    trainable = count_lora_parameters(architecture, lora_rank, lora_targets) if lora_rank else everything
    sizes = {"precision": precision, "zero_stage": zero_stage, "num_gpus": num_gpus}
    frozen = everything if lora_rank else 0
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
