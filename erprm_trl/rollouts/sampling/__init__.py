"""Samples solutions and continuations from a policy with transformers, vLLM or a server."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .base import Completion, Prompt, Sampler, decode_continuation, derived_seed, holds_stop
    from .endpoint_sampler import EndpointSampler
    from .loading import SETTING_NAMES, check_sampler_settings, load_sampler
    from .processor import default_dtype
    from .prompt_format import PromptFormat
    from .transformers_sampler import TransformersSampler
    from .vllm_sampler import VLLMSampler

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base": [
            "Completion",
            "Prompt",
            "Sampler",
            "decode_continuation",
            "derived_seed",
            "holds_stop",
        ],
        "endpoint_sampler": ["EndpointSampler"],
        "loading": ["SETTING_NAMES", "check_sampler_settings", "load_sampler"],
        "processor": ["default_dtype"],
        "prompt_format": ["PromptFormat"],
        "transformers_sampler": ["TransformersSampler"],
        "vllm_sampler": ["VLLMSampler"],
    },
)
