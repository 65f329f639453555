"""Counts the bytes that autograd saves in the forward pass of a Llama-style model, tensor by tensor, for its layers
and its head. Pure arithmetic over the sizes of the model."""

from .architecture import LINEARS, Architecture


# Number of tokens and of vocabulary entries per tile of TRL's fused head.
HEAD_TILE = (4096, 32768)


def layer_activation_bytes(
    architecture: Architecture,
    batch_size: int,
    length: int,
    *,
    precision: str = "mixed",
    padded: bool = True,
    lora_rank: int = 0,
    lora_targets=LINEARS,
) -> int:
    r"""
    Bytes that autograd saves for one layer between its forward and its backward pass.

    The bytes per token are listed below. c is the number of bytes per value (4 for `"float32"`, else 2), h the hidden
    size, i the intermediate size, q and k the sizes of all queries and of all keys, a the number of heads:

    | saved tensors | full training | LoRA |
    |---|---|---|
    | two RMSNorms: float32 input, inverse root | 2 (4 h + 4) | the same |
    | two RMSNorms: normalised input, for the gradient of the weight | 2 c h, mixed 8 h | 0, as they are frozen |
    | inputs of q, k, v and of gate, up | 2 c h, mixed 5 c h (one cast each) | in the last row |
    | rotated queries and keys, values, output | c (2 q + 2 k) | the same |
    | logsumexp of each head | 4 a | the same |
    | gate, its SiLU, up | 3 c i | the same |
    | input of down | c i | in the last row |
    | input and inner value of each adapter | | c (inputs + r) per target |

    The attention is SDPA's fused attention, which stores no (T, T) matrix of scores. `padded` batches have a mask of
    c T bytes per token, and keys and values are repeated for every head, so k equals q. Each adapter is counted with
    its own copy of the input, which autocast makes. Adapters with the dtype of their input share it, and need less.

    Args:
        architecture ([`Architecture`]):
            Sizes of the model.
        batch_size, length (`int`):
            Number B of sequences, and number T of tokens per sequence.
        precision (`str`, *optional*, defaults to `"mixed"`):
            `"float32"`, `"mixed"` or `"bfloat16"`, see [`state_bytes`].
        padded (`bool`, *optional*, defaults to `True`):
            Whether the sequences differ in length.
        lora_rank (`int`, *optional*, defaults to `0`):
            Rank r of the LoRA adapters. 0 means full training.
        lora_targets (`Sequence[str]`, *optional*, defaults to all seven):
            Names of the linear layers with adapters, see [`count_lora_parameters`].

    Returns:
        `int`: number of bytes. Autocast's copies of the weights are not included, see [`buffer_bytes`].

    Source: counted as in Korthikanti et al. (2205.05198), section 4.1, but for SDPA, RMSNorm, a gated MLP and grouped
    keys, without dropout.
    """
    a, size = architecture, 4 if precision == "float32" else 2
    linears = a.linears()
    queries = a.num_heads * a.head_dim
    keys = queries if padded else a.num_kv_heads * a.head_dim
    token = 2 * (4 * a.hidden_size + 4) + size * (2 * queries + 2 * keys + 3 * a.intermediate_size) + 4 * a.num_heads
    if lora_rank:
        token += sum(size * (linears[name][0] + lora_rank) for name in set(lora_targets))
    elif precision == "mixed":
        token += 8 * a.hidden_size + 5 * size * a.hidden_size + size * a.intermediate_size
    else:
        token += 4 * size * a.hidden_size + size * a.intermediate_size
    return batch_size * length * (token + size * length * padded)


def saved_activation_bytes(
    architecture: Architecture,
    batch_size: int,
    length: int,
    *,
    precision: str = "mixed",
    gradient_checkpointing: bool = True,
    padded: bool = True,
    lora_rank: int = 0,
    lora_targets=LINEARS,
) -> int:
    """
    Bytes that autograd has saved for all layers at the end of the forward pass, without the head.

    `L * layer + last norm`, or `L * (input of a layer) + last norm` with gradient checkpointing. With gradient
    checkpointing, the backward pass needs the [`layer_activation_bytes`] of one layer in addition.

    Args:
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            Whether only the input of each layer is saved, and the layer is computed again in the backward pass.
        architecture, batch_size, length, precision, padded, lora_rank, lora_targets:
            See [`layer_activation_bytes`].

    Returns:
        `int`: number of bytes. The head is counted by [`logit_bytes`]. The rotary tables and the token ids, a few
        kilobytes, are not counted.

    Source: Korthikanti et al. (2205.05198), section 5.
    """
    a = architecture
    if gradient_checkpointing:
        layer = batch_size * length * a.hidden_size * (2 if precision == "bfloat16" else 4)
    else:
        options = {"precision": precision, "padded": padded, "lora_rank": lora_rank, "lora_targets": lora_targets}
        layer = layer_activation_bytes(a, batch_size, length, **options)
    normalised = 0 if lora_rank else (2 if precision == "bfloat16" else 4)
    last_norm = batch_size * length * ((4 + normalised) * a.hidden_size + 4)
    return a.num_layers * layer + last_norm


def logit_bytes(
    architecture: Architecture, batch_size: int, length: int, *, head: str, steps: int = 16, precision: str = "mixed"
) -> int:
    """
    Bytes of the inputs and outputs of the language-model head.

    Args:
        architecture, batch_size, length, precision:
            See [`layer_activation_bytes`].
        head (`str`):
            Kind of head. `"steps"` computes the logits of the good and the bad token at the separators, in float32
            ([`~erprm_trl.reward_model.step_logits.step_logits`]). `"fused"` is TRL's head, which computes tiles of the
            vocabulary and accumulates float32 gradients. `"full"` stores all logits, their log-softmax and its
            gradient, in float32.
        steps (`int`, *optional*, defaults to `16`):
            Number of steps per sequence, for `"steps"`.

    Returns:
        `int`: number of bytes.

    Raises:
        `ValueError`: for an unknown head.
    """
    a, size, tokens = architecture, 4 if precision == "float32" else 2, batch_size * length
    if head == "steps":
        return batch_size * steps * 4 * (2 * a.hidden_size + 3 * 2)
    if head == "fused":
        tile = min(tokens, HEAD_TILE[0]) * min(a.vocab_size, HEAD_TILE[1])
        return size * (tile + tokens * a.hidden_size) + 4 * (tokens + a.vocab_size) * a.hidden_size
    if head == "full":
        return tokens * (3 * 4 * a.vocab_size + size * a.hidden_size)
    raise ValueError(f"head: got {head!r}, expected 'steps', 'fused' or 'full'. Pass one of these three.")
