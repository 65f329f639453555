"""The number formats of this machine's processor."""


def computes_bfloat16() -> bool:
    """
    Finds out whether this processor has instructions for products in bfloat16 (`avx512_bf16`, AMX). Without them,
    these products take tens of times as long as in float32.

    Returns:
        `bool`: also `False` if this release of torch does not tell.
    """
    import torch

    # Older releases of torch do not have the function.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
