"""Estimates the memory that training needs on each GPU, from the sizes of the model. Pure arithmetic, no tensors."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .activations import layer_activation_bytes, logit_bytes, saved_activation_bytes
    from .architecture import Architecture, count_lora_parameters, count_parameters
    from .training import memory_per_gpu, state_bytes

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "activations": ["layer_activation_bytes", "logit_bytes", "saved_activation_bytes"],
        "architecture": ["Architecture", "count_lora_parameters", "count_parameters"],
        "training": ["memory_per_gpu", "state_bytes"],
    },
)
