"""Sizes of Llama-style models, and the number of their parameters. Pure arithmetic: no model is built."""

from collections import namedtuple


ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION_LINEARS, "gate_proj", "up_proj", "down_proj")


class Architecture(
    namedtuple(
        "Architecture",
        "vocab_size hidden_size num_layers num_heads num_kv_heads head_dim intermediate_size tied_embeddings "
        "qkv_bias output_bias mlp_bias",
        defaults=(False, False, False, False),
    )
):
    """
    Sizes of a decoder with RMSNorm, rotary attention with grouped keys and values, and a gated MLP: Llama, Mistral,
    Qwen2.

    Args:
        vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size (`int`):
            Sizes as in the configuration of the model, at least 1.
        tied_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares its weight with the embedding.
        qkv_bias, output_bias, mlp_bias (`bool`, *optional*, defaults to `False`):
            Whether there are biases in the projections to queries, keys and values, in the output projection of the
            attention, and in the MLP.
    """

    __slots__ = ()

    @classmethod
    def from_config(cls, config) -> "Architecture":
        """
        Reads the sizes from a transformers configuration.

        Args:
            config (`PretrainedConfig`):
                Configuration of a Llama, Mistral or Qwen2 model.

        Returns:
            [`Architecture`]: the sizes.

        Raises:
            `ValueError`: for another model type.
        """
        if config.model_type not in ("llama", "mistral", "qwen2"):
            raise ValueError(
                f"Architecture: got a {config.model_type!r} model, expected llama, mistral or qwen2. If it is built "
                "like one of them, pass the sizes to Architecture yourself."
            )
        attention_bias = getattr(config, "attention_bias", False)
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            config.intermediate_size,
            config.tie_word_embeddings,
            config.model_type == "qwen2" or attention_bias,
            attention_bias,
            getattr(config, "mlp_bias", False),
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """Number of inputs and outputs of each linear layer in a transformer layer, by name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return dict(zip(LINEARS, [*sizes, (hidden, inner), (hidden, inner), (inner, hidden)], strict=True))


def count_linear_weights(architecture: Architecture) -> int:
    """Number of weights in the linear layers of all transformer layers, without biases."""
    return architecture.num_layers * sum(inputs * outputs for inputs, outputs in architecture.linears().values())


def count_parameters(architecture: Architecture) -> int:
    """
    Number of parameters of a causal language model.

    `P = V h (1 or 2) + L (weights of linear layers + biases + 2 h) + h`

    Args:
        architecture ([`Architecture`]):
            Sizes of the model.

    Returns:
        `int`: number of parameters. A tied head is counted once.
    """
    a, linears = architecture, architecture.linears()
    biases = a.qkv_bias * sum(linears[name][1] for name in ATTENTION_LINEARS[:3]) + a.output_bias * a.hidden_size
    biases += a.mlp_bias * (2 * a.intermediate_size + a.hidden_size)
    embeddings = a.vocab_size * a.hidden_size * (1 if a.tied_embeddings else 2)
    return embeddings + count_linear_weights(a) + a.num_layers * (biases + 2 * a.hidden_size) + a.hidden_size


def count_lora_parameters(architecture: Architecture, rank: int, targets=LINEARS) -> int:
    """
    Number of parameters of LoRA adapters on the linear layers.

    `L * sum over targets of r (inputs + outputs)`

    Args:
        architecture ([`Architecture`]):
            Sizes of the model.
        rank (`int`):
            Rank r of the adapters, at least 1.
        targets (`Sequence[str]`, *optional*, defaults to all seven, which is PEFT's `"all-linear"`):
            Names of the linear layers with adapters, from `LINEARS`.

    Returns:
        `int`: number of trainable parameters.

    Raises:
        `ValueError`: for an unknown name.

    Source: Hu et al., LoRA (2106.09685), section 4.1.
    """
    linears = architecture.linears()
    unknown = sorted(set(targets) - set(linears))
    if unknown:
        raise ValueError(
            f"LoRA targets: got {', '.join(unknown)}, expected names among {', '.join(linears)}. Correct the names."
        )
    return architecture.num_layers * sum(rank * sum(linears[name]) for name in set(targets))
