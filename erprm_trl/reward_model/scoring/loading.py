"""Loads the scoring backend for a folder, a Hub id, a scorer file or the address of a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ...io.config_values import is_url
from ...io.file_checks import check_model_folder
from ...io.paths import local_path
from ...io.tokenizers import load_tokenizer
from ..prm_format import PRMFormat, resolve_format
from ..reference_model import load_reference_model, unpartitioned
from .backend import ScoringBackend
from .engine_server import connect
from .implicit import ImplicitBackend
from .local import LocalBackend
from .remote import refuse_loading
from .scorer_file import is_scorer_file, load_scorer_file, scorer_file_format
from .sharded import ShardedBackend, check_sharding
from .vllm import VLLMBackend
from .weights import load_reward_model


if TYPE_CHECKING:
    from accelerate import Accelerator

# How a model in this process is run.
BACKENDS = ("local", "vllm")


def load_format(
    path_or_url: str | Path, prm_format: PRMFormat | str | None = None, revision: str | None = None
) -> PRMFormat:
    """
    Loads the format of a reward model without loading the model.

    Args:
        path_or_url (`str` or `Path`):
            Folder, Hub id, address of a scoring server, or scorer file.
        prm_format ([`PRMFormat`] or `str`, *optional*):
            A format or the name of a preset. If set, nothing is read and no server is asked.
        revision (`str`, *optional*):
            Revision on the Hub. It cannot be used with an address.

    Raises:
        `FileNotFoundError`: if a folder or Hub repository has no `prm_format.json`.
        `ValueError`: for an unknown preset, a damaged file, or an address with a revision.
        [`~erprm_trl.rollouts.EndpointError`]: if the request to the server fails.
    """
    if prm_format is None and is_url(path_or_url):
        refuse_loading(path_or_url, revision=revision)
        return connect(path_or_url).prm_format
    if prm_format is None and is_scorer_file(path_or_url):
        return scorer_file_format(path_or_url)
    return resolve_format(prm_format, path_or_url, revision)


def load_backend(
    path_or_id: str | Path,
    *,
    prm_format: PRMFormat | str | None = None,
    dtype: "str | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    device_map: "str | dict[str, Any] | None" = None,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    accelerator: "Accelerator | None" = None,
    backend: str = "local",
    tokenizer: str | Path | None = None,
) -> ScoringBackend:
    """Loads the backend for a reward model. For the arguments and errors see [`StepScorer.from_pretrained`]."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}. Correct the name.")
    if is_url(path_or_id) or is_scorer_file(path_or_id):
        loading = {"device_map": device_map, "revision": revision, "trust_remote_code": trust_remote_code}
        loading |= {"accelerator": accelerator, "dtype": dtype if dtype != "auto" else None}
        loading["backend"] = backend if backend != "local" else None
        return _load_elsewhere(path_or_id, prm_format, tokenizer, loading)
    if tokenizer is not None:
        raise ValueError(
            "tokenizer: got a value together with a folder or Hub id, expected it only with the address of a vLLM or "
            "SGLang server. Leave it out. The model's own tokenizer is loaded."
        )
    if backend == "vllm":
        return _load_vllm_backend(path_or_id, prm_format, dtype, device_map, revision, trust_remote_code, accelerator)
    path_or_id = local_path(path_or_id)
    check_model_folder(path_or_id, revision)
    prm_format = resolve_format(prm_format, path_or_id, revision)
    kwargs: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
    kwargs["trust_remote_code"] = trust_remote_code
    limits = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
    tokenizer = load_tokenizer(path_or_id, revision=revision, trust_remote_code=trust_remote_code)
    prm_format.token_ids(tokenizer)  # raises its errors before the weights are loaded
    if accelerator is not None:
        check_sharding(path_or_id, accelerator, prm_format, revision)
        model = load_reward_model(path_or_id, prm_format, kwargs)
        return ShardedBackend(model, tokenizer, prm_format, accelerator, **limits)
    with unpartitioned():
        reference_model = load_reference_model(prm_format, kwargs)
        model = load_reward_model(path_or_id, prm_format, kwargs)
    if device_map is None:
        first = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        device = device if device is not None else first
        model = model.to(device)
        reference_model = None if reference_model is None else reference_model.to(device)
    return backend_of(model, tokenizer, prm_format, reference_model, **limits)


def _load_elsewhere(
    path_or_url: str | Path, prm_format: PRMFormat | str | None, tokenizer, loading: dict[str, Any]
) -> ScoringBackend:
    """The backend for an address or a scorer file. The arguments `loading` are refused."""
    if is_url(path_or_url):
        refuse_loading(path_or_url, **loading)
        return connect(path_or_url, prm_format=prm_format, tokenizer=tokenizer)
    refuse_loading(path_or_url, prm_format=prm_format, tokenizer=tokenizer, **loading)
    with unpartitioned():
        return load_scorer_file(path_or_url)


def _load_vllm_backend(
    path_or_id, prm_format, dtype, device_map, revision: str | None, trust_remote_code: bool, accelerator
) -> VLLMBackend:
    refused = {"device_map": device_map, "accelerator": accelerator}
    if names := [name for name, value in refused.items() if value is not None]:
        raise ValueError(
            f"{', '.join(names)}: got a value together with backend='vllm', expected none, because the engine places "
            "the model. Use VLLMBackend(path, engine_kwargs={'tensor_parallel_size': 2}) for several GPUs."
        )
    return VLLMBackend(
        path_or_id, prm_format=prm_format, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )


def backend_of(
    model: PreTrainedModel, tokenizer, prm_format: PRMFormat, reference_model: PreTrainedModel | None, **limits: Any
) -> ScoringBackend:
    """
    Returns the backend for a model in this process. `limits` are arguments of [`LocalBackend`].

    Raises:
        `ValueError`: if the format's head needs a reference model and `reference_model` is `None`.
    """
    if prm_format.head != "implicit":
        return LocalBackend(model, tokenizer, prm_format, **limits)
    if reference_model is None:
        raise ValueError(
            "StepScorer: got head='implicit' without a reference_model, expected the model that the reward model was "
            "trained against. Pass reference_model, or set PRMFormat(reference_model=...) and load with "
            "from_pretrained."
        )
    return ImplicitBackend(model, reference_model, tokenizer, prm_format, **limits)
