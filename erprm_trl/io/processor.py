"""What this machine's processor computes."""


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16 (`avx512_bf16`, AMX)."""
    import torch

    # Older releases of torch do not have the function.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
