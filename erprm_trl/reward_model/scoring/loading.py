"""Loads the scoring backend for a folder, a Hub id or the address of a scoring server.

A reward model is loaded with its head, and without running code from its repository. A checkpoint without the head is
an error, because the head would have random weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ...io.adapters import adapter_config, base_of_adapter
from ...io.config_values import is_url
from ...io.file_checks import check_model_folder
from ...io.paths import local_path
from ...io.tokenizers import load_tokenizer
from ..heads import AUTO_MODELS, VALUE_HEAD_NAMES, check_architecture, token_classifier_with_mlp
from ..prm_format import PRMFormat, resolve_format
from ..reference_model import load_reference_model, unpartitioned
from .backend import ScoringBackend
from .implicit import ImplicitBackend
from .local import LocalBackend
from .remote import RemoteBackend, refuse_loading
from .sharded import ShardedBackend, check_sharding


if TYPE_CHECKING:
    from accelerate import Accelerator


def load_format(
    path_or_url: str | Path, prm_format: PRMFormat | str | None = None, revision: str | None = None
) -> PRMFormat:
    """
    Loads the format of a reward model without loading the model.

    Args:
        path_or_url (`str` or `Path`):
            Folder, Hub id, or address of a scoring server.
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
        refuse_loading(revision=revision)
        return RemoteBackend(path_or_url).prm_format
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
) -> ScoringBackend:
    """Loads the backend for a reward model. For the arguments and errors see [`StepScorer.from_pretrained`]."""
    if is_url(path_or_id):
        refuse_loading(
            prm_format=prm_format,
            dtype=None if dtype == "auto" else dtype,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            accelerator=accelerator,
        )
        return RemoteBackend(path_or_id)
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


def load_reward_model(path_or_id: str, prm_format: PRMFormat, kwargs: dict[str, Any]) -> PreTrainedModel:
    """
    Loads the weights of a reward model, or a LoRA adapter with its base model.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the model or the adapter.
        prm_format ([`PRMFormat`]):
            Format of the model.
        kwargs (`dict`):
            Keyword arguments of `from_pretrained`, including `revision` and `trust_remote_code`.

    Raises:
        `ValueError`: if the checkpoint lacks weights of the model, such as its head, or if transformers has no model
            of the architecture with that head.
        `FileNotFoundError`: if an adapter's base model is not at the path that the adapter records.
    """
    head, kwargs = prm_format.head, dict(kwargs)
    if head in ("token", "token_mlp"):
        kwargs["num_labels"] = prm_format.num_labels
    adapter = adapter_config(path_or_id, kwargs["revision"])
    base, revision = path_or_id, kwargs["revision"]
    if adapter is not None:
        base, revision = base_of_adapter(path_or_id, adapter), adapter.get("revision")
    if head in ("token", "token_mlp"):
        options = {name: kwargs[name] for name in ("trust_remote_code", "num_labels")}
        config = AutoConfig.from_pretrained(base, revision=revision, **options)
        check_architecture(base, config, head)
    if adapter is not None and head in AUTO_MODELS:
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification

        auto = AutoPeftModelForTokenClassification if head == "token" else AutoPeftModelForCausalLM
        # PEFT initialises weights at random before it reads them. A policy's samples must not depend on that.
        with torch.random.fork_rng(devices=[]):
            model = auto.from_pretrained(path_or_id, **kwargs)
        model.config.name_or_path = path_or_id  # PEFT keeps the path of the base model here
        return model
    if head == "token_mlp":
        cls = token_classifier_with_mlp(config)
        kwargs = {name: kwargs[name] for name in kwargs if name not in ("num_labels", "trust_remote_code")}
        kwargs["config"] = config
    else:
        cls = AUTO_MODELS[head]
        if head == "token":
            kwargs["key_mapping"] = VALUE_HEAD_NAMES
    model, info = cls.from_pretrained(path_or_id, output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path_or_id}: got a checkpoint without {', '.join(missing[:4])}{', ...' if missing[4:] else ''} (and "
            f"with {', '.join(sorted(info['unexpected_keys'])[:4]) or 'no other weights'}), expected a reward model "
            f"trained with head={head!r}. Pass the prm_format that it was trained with, e.g. "
            'PRMFormat.preset("qwen2.5-math-prm").'
        )
    return model
