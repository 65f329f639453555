"""Loads the weights of a reward model or a LoRA adapter.

A reward model is loaded with its head, and without running code from its repository. A checkpoint without the head is
an error, because the head would have random weights.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ...io.adapters import adapter_config, base_of_adapter
from ...io.tokenizers import load_tokenizer
from ..heads import AUTO_MODELS, VALUE_HEAD_NAMES, check_architecture, fit_embeddings, token_classifier_with_mlp
from ..prm_format import PRMFormat


if TYPE_CHECKING:
    from peft import PeftModel


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
        # PEFT initialises weights at random before it reads them. A policy's samples must not depend on that.
        with torch.random.fork_rng(devices=[]):
            return _load_adapter(path_or_id, head, base, revision, kwargs)
    if head == "token_mlp":
        cls = token_classifier_with_mlp(config)
        kwargs = {name: kwargs[name] for name in kwargs if name not in ("num_labels", "trust_remote_code")}
        kwargs["config"] = config
    else:
        cls = AUTO_MODELS[head]
        if head == "token":
            kwargs["key_mapping"] = VALUE_HEAD_NAMES
    model, info = cls.from_pretrained(path_or_id, output_loading_info=True, **kwargs)
    _check_weights(path_or_id, head, info["missing_keys"], info["unexpected_keys"])
    return model


def _load_adapter(path_or_id: str, head: str, base: str, revision: str | None, kwargs: dict[str, Any]) -> "PeftModel":
    """Loads an adapter on its base model. Weights that the base model lacks, such as a new head, must be in the
    adapter."""
    from peft import PeftModel, load_peft_weights

    adapter = {"revision": kwargs.pop("revision")}
    model, info = AUTO_MODELS[head].from_pretrained(base, output_loading_info=True, revision=revision, **kwargs)
    if missing := set(info["missing_keys"]):
        saved = load_peft_weights(path_or_id, device="cpu", **adapter)
        # Keys begin with "base_model.model.", or with "base_model." for virtual tokens and prefixes.
        missing -= {name.removeprefix("base_model.").removeprefix("model.") for name in saved}
        _check_weights(base, head, missing, info["unexpected_keys"])
    fit_embeddings(model, load_tokenizer(path_or_id, trust_remote_code=kwargs["trust_remote_code"], **adapter))
    model = PeftModel.from_pretrained(model, path_or_id, device_map=kwargs.get("device_map"), **adapter)
    model.config.name_or_path = path_or_id  # PEFT keeps the path of the base model here
    return model


def _check_weights(path_or_id: str, head: str, missing_keys: Iterable[str], unexpected_keys: Iterable[str]) -> None:
    if missing := sorted(missing_keys):
        raise ValueError(
            f"{path_or_id}: got a checkpoint without {', '.join(missing[:4])}{', ...' if missing[4:] else ''} (and "
            f"with {', '.join(sorted(unexpected_keys)[:4]) or 'no other weights'}), expected a reward model "
            f"trained with head={head!r}. Pass the prm_format that it was trained with, e.g. "
            'PRMFormat.preset("qwen2.5-math-prm").'
        )
