"""Names the options for speed that are off in a training run, and what they gained where that was measured."""

from importlib.util import find_spec

from torch import nn

from .erprm_config import ERPRMConfig


# Tokens per second of a 1.07B model on one H100 in bf16, from the table in docs/benchmarks.md.
_LIGER = "measured with 1.07B on one H100: 1.37 times the tokens per second"
_COMPILE = "measured with 1.07B on one H100: 1.38 times the tokens per second"


def missing_fast_paths(model: nn.Module, args: ERPRMConfig, on_gpu: bool) -> list[str]:
    """
    Lists the options for speed that are off, one sentence part per option.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model that is trained.
        args ([`ERPRMConfig`]):
            Arguments of the training run.
        on_gpu (`bool`):
            Whether the model is trained on a GPU. Options that only matter there are left out otherwise.

    Returns:
        `list[str]`: the options with their current values. Empty if nothing is off.
    """
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    padded = args.train_sampling_strategy in ("random", "sequential") and not args.packing
    has_liger = find_spec("liger_kernel") is not None
    checks = {
        "attn_implementation='eager' (sdpa does not store the attention matrix)": attention == "eager",
        f"train_sampling_strategy={args.train_sampling_strategy!r} without packing (batches are padded)": padded,
        "optim='adamw_torch' (adamw_torch_fused updates all weights in a few kernels)": args.optim == "adamw_torch",
    }
    if on_gpu:
        checks |= {
            "bf16=False and fp16=False": not (args.bf16 or args.fp16),
            f"use_liger_kernel=False ({_LIGER}{'' if has_liger else '; needs pip install liger-kernel'})": not (
                args.use_liger_kernel
            ),
            f"torch_compile=False ({_COMPILE})": not (args.torch_compile or args.use_liger_kernel),
            "gradient_checkpointing=True (computes activations twice; erprm memory says whether they fit)": bool(
                args.gradient_checkpointing
            ),
            "dataloader_num_workers=0 (batches are formed between updates)": args.dataloader_num_workers == 0,
            "dataloader_pin_memory=False (the GPU waits for each batch)": not args.dataloader_pin_memory,
        }
    return [text for text, is_missing in checks.items() if is_missing]
