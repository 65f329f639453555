"""Prints what a training holds on each GPU, before there is one.

python recipes/estimate_memory.py --model_name_or_path meta-llama/Llama-3.1-8B --zero_stage 3 --num_gpus 8
python recipes/estimate_memory.py --sizes 128256 4096 32 32 8 128 14336 --precision bfloat16 --lora_r 16

Arithmetic (erprm_trl/functional/training_memory.py), not measured: leave a tenth of a GPU to CUDA and the allocator.
"""

from dataclasses import dataclass, field

from trl import TrlParser


@dataclass
class MemoryArguments:
    """The model and how it is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Hub id or a folder with config.json."})
    sizes: list[int] | None = field(
        default=None,
        metadata={"help": "Instead: vocabulary, hidden, layers, heads, key/value heads, size of a head, MLP."},
    )
    tie_word_embeddings: bool = field(default=False, metadata={"help": "With sizes: the head is the embedding."})
    qkv_bias: bool = field(default=False, metadata={"help": "With sizes: biases of q, k and v (Qwen2)."})
    precision: str | None = field(
        default=None, metadata={"help": "float32, mixed or bfloat16; default: bfloat16 with ZeRO, else mixed."}
    )
    zero_stage: int = field(default=0, metadata={"help": "0 (one GPU or DDP), 1, 2 or 3."})
    num_gpus: int = field(default=1, metadata={"help": "Processes, one a GPU."})
    offload_optimizer: bool = field(default=False, metadata={"help": "Optimizer and gradients on the host."})
    offload_weights: bool = field(default=False, metadata={"help": "Weights on the host (ZeRO-3)."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Sequences of a micro-batch."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a sequence, prompt included."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Each layer keeps its input alone."})
    padded: bool = field(default=True, metadata={"help": "Sequences of a batch differ in length."})
    head: str = field(
        default="steps", metadata={"help": "steps (train_erprm), fused (train_raft, train_step_*) or full."}
    )
    lora_r: int = field(default=0, metadata={"help": "0 trains all weights."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Of LoRA; default: all linear."})
    optimizer_values: int = field(default=2, metadata={"help": "Values kept a parameter: Adam 2, momentum 1, SGD 0."})
    other_models: list[float] = field(
        default_factory=list, metadata={"help": "Billions of parameters of others on the GPU, 2 bytes each."}
    )


def main(arguments: MemoryArguments) -> dict[str, int]:
    """Prints the table, in GiB."""
    from erprm_trl.functional import Architecture, count_lora_parameters, count_parameters, memory_per_gpu
    from erprm_trl.memory.architecture import LINEARS

    if (arguments.sizes is None) == (arguments.model_name_or_path is None):
        raise ValueError("Give either --model_name_or_path or --sizes.")
    fields = dict(vars(arguments))
    name, sizes = fields.pop("model_name_or_path"), fields.pop("sizes")
    biases = fields.pop("tie_word_embeddings"), fields.pop("qkv_bias")
    if sizes is None:
        from transformers import AutoConfig

        from erprm_trl.io.paths import local_path

        config = AutoConfig.from_pretrained(local_path(name), trust_remote_code=False)
        architecture = Architecture.from_config(config)
    else:
        architecture = Architecture(*sizes, *biases)
    fields["precision"] = fields["precision"] or ("bfloat16" if arguments.zero_stage else "mixed")
    batch, length = fields.pop("per_device_train_batch_size"), fields.pop("max_length")
    rank, targets = fields.pop("lora_r"), fields.pop("lora_target_modules") or LINEARS
    other = round(sum(fields.pop("other_models")) * 2e9)
    lora = {"lora_rank": rank, "lora_targets": targets, "other_bytes": other}
    report = memory_per_gpu(architecture, batch, length, **lora, **fields)
    trained = count_lora_parameters(architecture, rank, targets) if rank else count_parameters(architecture)
    print(f"{count_parameters(architecture):,} parameters, {trained:,} trained, {fields['precision']}")
    for row, size in report.items():
        print(f"{row:<12}{size / 2**30:9.2f} GiB")
    return report


if __name__ == "__main__":
    main(TrlParser(MemoryArguments).parse_args_and_config()[0])
