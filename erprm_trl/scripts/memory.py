"""Estimates the memory that a training takes on each GPU, before there is a GPU.

erprm memory --model_name_or_path meta-llama/Llama-3.1-8B --zero_stage 3 --num_gpus 8
erprm memory --sizes 128256 4096 32 32 8 128 14336 --precision bfloat16 --lora_r 16

The values are computed, not measured. Leave a tenth of the GPU's memory to CUDA and the allocator.
"""

from dataclasses import dataclass, field

from ..io.paths import local_path
from ..memory import Architecture, count_lora_parameters, count_parameters, memory_per_gpu
from ..memory.architecture import LINEARS
from .outcome import print_outcome


@dataclass
class MemoryArguments:
    """The model, and how it is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Hub id or a folder with config.json."})
    sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "Instead of a model: vocabulary, hidden size, layers, heads, key/value heads, size of a head, MLP."
        },
    )
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "The output layer shares the embedding's weights (with --sizes)."}
    )
    qkv_bias: bool = field(default=False, metadata={"help": "q, k and v have biases, as in Qwen2 (with --sizes)."})
    precision: str | None = field(
        default=None, metadata={"help": "float32, mixed or bfloat16. Default: bfloat16 with ZeRO, otherwise mixed."}
    )
    zero_stage: int = field(default=0, metadata={"help": "0 (one GPU or DDP), 1, 2 or 3."})
    num_gpus: int = field(default=1, metadata={"help": "Number of processes, one per GPU."})
    offload_optimizer: bool = field(
        default=False, metadata={"help": "Keep optimizer and gradients in the host's memory."}
    )
    offload_weights: bool = field(default=False, metadata={"help": "Keep the weights in the host's memory (ZeRO-3)."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Number of sequences per micro-batch."})
    max_length: int = field(default=1024, metadata={"help": "Tokens per sequence, prompt included."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Keep only the input of each layer, and recompute the rest."}
    )
    padded: bool = field(default=True, metadata={"help": "Sequences of a batch differ in length."})
    head: str = field(
        default="steps", metadata={"help": "steps (erprm train), fused (erprm raft, grpo, ppo) or full."}
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA. 0 trains all weights."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers with LoRA. Default: all linear layers."}
    )
    optimizer_values: int = field(
        default=2, metadata={"help": "Values that the optimizer keeps per parameter: Adam 2, momentum 1, SGD 0."}
    )
    other_models: list[float] = field(
        default_factory=list,
        metadata={"help": "Sizes of further models on the GPU, in billions of parameters of 2 bytes."},
    )

    def __post_init__(self):
        if (self.sizes is None) == (self.model_name_or_path is None):
            raise ValueError(
                f"Model: got model_name_or_path={self.model_name_or_path!r} and sizes={self.sizes!r}, expected either "
                "--model_name_or_path or --sizes."
            )
        if self.sizes is not None and len(self.sizes) != 7:
            raise ValueError(
                f"sizes: got {len(self.sizes)} numbers, expected 7: vocabulary, hidden size, layers, heads, key/value "
                "heads, size of a head, MLP."
            )


def main(arguments: MemoryArguments) -> dict[str, int]:
    """Prints the memory in GiB, by what it holds."""
    fields = dict(vars(arguments))
    name, sizes = fields.pop("model_name_or_path"), fields.pop("sizes")
    biases = fields.pop("tie_word_embeddings"), fields.pop("qkv_bias")
    if sizes is None:
        from transformers import AutoConfig

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
    print_outcome(
        f"{count_parameters(architecture):,} parameters, {trained:,} trained, {fields['precision']}",
        *(f"{row:<12}{size / 2**30:9.2f} GiB" for row, size in report.items()),
    )
    return report
