"""The precision of a training that sets none."""

from typing import Any

from ..io.processor import computes_bfloat16


def choose_precision(args: Any) -> None:
    """
    Sets `bf16=False` if nothing is set, and the training runs on a processor without instructions for bfloat16.

    Such a processor multiplies matrices in bfloat16 tens of times as slowly as in float32. Elsewhere, TRL's default
    remains: `bf16=True`, unless `fp16` is set.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Arguments before their own checks.
    """
    import torch

    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 is None and not args.fp16 and on_cpu and not computes_bfloat16():
        args.bf16 = False
