"""Loads a sampler from named settings, for configuration files and the command line."""

import difflib
from collections.abc import Mapping
from os import PathLike
from typing import Any

from ...io.paths import path_in_package
from .base import Sampler
from .endpoint_sampler import EndpointSampler
from .transformers_sampler import TransformersSampler
from .vllm_sampler import VLLMSampler


BACKENDS = ("transformers", "vllm", "endpoint")
# Arguments that all samplers have.
SHARED = (
    "temperature top_p top_k max_new_tokens "
    "prompt_template system_prompt use_chat_template chat_template_kwargs examples"
).split()
OF_ENDPOINT = ("max_concurrency", "request_timeout", "api_key_env")
OF_MODEL = ("model_name_or_path", "dtype", "model_init_kwargs")
SETTING_NAMES = ("backend", *OF_MODEL, "batch_size", "base_url", *OF_ENDPOINT, *SHARED)


def check_sampler_settings(settings: Mapping[str, Any]) -> None:
    """
    Checks the names of a sampler's settings, its backend, and that the settings that it needs are set.

    Raises:
        `ValueError`: see [`load_sampler`].
    """
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"sampler: got {str(settings)[:80]!r} ({type(settings).__name__}), expected a mapping with backend and "
            "model_name_or_path. Write one setting per line below `sampler:`."
        )
    for name in settings:
        if name not in SETTING_NAMES:
            close = difflib.get_close_matches(str(name), SETTING_NAMES, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"sampler: got the setting {name!r}, expected one of {', '.join(SETTING_NAMES)}.{hint}")
    backend = settings.get("backend", BACKENDS[0])
    if backend not in BACKENDS:
        raise ValueError(f"sampler: got backend {backend!r}, expected one of {', '.join(BACKENDS)}. Choose one.")
    dtype, init_kwargs = settings.get("dtype"), settings.get("model_init_kwargs") or {}
    if dtype is not None and init_kwargs.get("dtype", dtype) != dtype:
        raise ValueError(
            f"sampler: got dtype={dtype!r} and model_init_kwargs with dtype {init_kwargs['dtype']!r}, expected one of "
            "them. Leave out one."
        )
    for name in ("model_name_or_path", *(["base_url"] if backend == "endpoint" else [])):
        if not isinstance(settings.get(name), (str, PathLike)):
            raise ValueError(
                f"sampler: got {name}={settings.get(name)!r} with backend {backend!r}, expected a text. Set {name}."
            )


def load_sampler(settings: Mapping[str, Any]) -> Sampler:
    """
    Loads a sampler.

    Args:
        settings (`Mapping[str, Any]`):
            Settings with the names of [`CollectConfig`]: `backend` (`"transformers"`, `"vllm"` or `"endpoint"`),
            `model_name_or_path`, `dtype`, `model_init_kwargs`, `base_url`, `batch_size` and the arguments of the
            samplers.
            Settings that are left out have the sampler's default. Settings of other backends are not used.

    Returns:
        [`TransformersSampler`], [`VLLMSampler`] or [`EndpointSampler`]: the sampler.

    Raises:
        `ValueError`: for an unknown name or backend, and if `model_name_or_path` or the `base_url` of a server is
            missing.
    """
    check_sampler_settings(settings)

    def present(*names: str) -> dict[str, Any]:
        return {name: settings[name] for name in names if name in settings}

    model, init_kwargs = path_in_package(settings["model_name_or_path"]), settings.get("model_init_kwargs") or {}
    backend = settings.get("backend", BACKENDS[0])
    if backend == "endpoint":
        return EndpointSampler(model, settings["base_url"], **present(*SHARED, *OF_ENDPOINT), **init_kwargs)
    if settings.get("dtype") is not None:
        init_kwargs = {"dtype": settings["dtype"], **init_kwargs}
    if backend == "vllm":
        return VLLMSampler(model, engine_kwargs=init_kwargs, **present(*SHARED))
    return TransformersSampler.from_pretrained(model, model_init_kwargs=init_kwargs, **present("batch_size", *SHARED))
