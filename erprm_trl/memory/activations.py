"""How many bytes autograd keeps of a Llama-style model's forward pass, layer by layer and at its head: arithmetic over
the sizes, counted tensor by tensor."""

from .architecture import LINEARS, Architecture


# TRL's fused head computes tiles of this many tokens and vocabulary entries.
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
    Bytes that autograd keeps of one layer between its forward and its backward pass.

    With c bytes a value (4 for `"float32"`, else 2), h hidden, i inner, q and k the sizes of all queries and of all
    keys, a heads, each token keeps:

    | | trained whole | with LoRA |
    |---|---|---|
    | two RMSNorms: float32 input, inverse root | 2 (4 h + 4) | the same |
    | their normalised input, for the weight's gradient | 2 c h, mixed 8 h | 0: frozen |
    | inputs of q, k, v and of gate, up | 2 c h, mixed 5 c h: each casts its own | in the line below |
    | rotated queries and keys, values, output | c (2 q + 2 k) | the same |
    | logsumexp of each head | 4 a | the same |
    | gate, its SiLU, up | 3 c i | the same |
    | input of down: their product | c i | in the line below |
    | each adapter's input and inner value | | c (inputs + r) a target |

    The attention is SDPA's fused one: no (T, T) matrix of scores. `padded` batches have a mask, c T bytes a token, and
    keys and values repeated for every head: k becomes q. Adapters whose dtype is that of their input share it; counted
    here is a copy each, which autocast makes.

    Args:
        architecture ([`Architecture`]):
            The sizes.
        batch_size, length (`int`):
            B sequences of T tokens.
        precision (`str`, *optional*, defaults to `"mixed"`):
            `"float32"`, `"mixed"` or `"bfloat16"`, see [`state_bytes`].
        padded (`bool`, *optional*, defaults to `True`):
            Whether the sequences differ in length.
        lora_rank (`int`, *optional*, defaults to `0`):
            r; 0 trains the layer whole.
        lora_targets (`Sequence[str]`, *optional*, defaults to all seven):
            See [`count_lora_parameters`].

    Returns:
        `int`: bytes. Autocast's copies of weights are [`buffer_bytes`]'s.

    Source: counted as in Korthikanti et al. (2205.05198), section 4.1, and derived anew for SDPA, RMSNorm, the gated
    MLP and grouped keys; without dropout.
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
    Bytes that autograd holds of the whole trunk when its forward pass is done.

    `L * layer + last norm`, or, with gradient checkpointing, `L * (input of a layer) + last norm`: the backward pass
    then holds one layer's [`layer_activation_bytes`] beside them.

    Args:
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            Whether each layer keeps its input alone and is computed again.
        architecture, batch_size, length, precision, padded, lora_rank, lora_targets:
            See [`layer_activation_bytes`].

    Returns:
        `int`: bytes. The head's are [`logit_bytes`]; the rotary tables and the token ids, kilobytes, are left out.

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
    Bytes of a head's inputs and outputs.

    Args:
        architecture, batch_size, length, precision:
            See [`layer_activation_bytes`].
        head (`str`):
            `"steps"`: good and bad column at separators, in float32
            ([`~erprm_trl.reward_model.step_logits.step_logits`]). `"fused"`: TRL's, by tiles of the vocabulary, with
            the float32 gradients that it accumulates. `"full"`: every logit, its log-softmax and their gradient, in
            float32.
        steps (`int`, *optional*, defaults to `16`):
            Steps a sequence, for `"steps"`.

    Returns:
        `int`: bytes.

    Raises:
        `ValueError`: for another head.
    """
    a, size, tokens = architecture, 4 if precision == "float32" else 2, batch_size * length
    if head == "steps":
        return batch_size * steps * 4 * (2 * a.hidden_size + 3 * 2)
    if head == "fused":
        tile = min(tokens, HEAD_TILE[0]) * min(a.vocab_size, HEAD_TILE[1])
        return size * (tile + tokens * a.hidden_size) + 4 * (tokens + a.vocab_size) * a.hidden_size
    if head == "full":
        return tokens * (3 * 4 * a.vocab_size + size * a.hidden_size)
    raise ValueError(f"head: got {head!r}, expected steps, fused or full.")
