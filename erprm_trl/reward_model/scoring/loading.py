"""Loads a trained reward model for scoring, its head included, without running code that its repository ships.

A head that a checkpoint lacks would be random: that is an error here, while training starts from one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from ..prm_format import PRMFormat
from ..trainer.model_setup import AUTO_MODELS, VALUE_HEAD_NAMES


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Models loaded here are whole on each process. While ZeRO-3 trains a policy in this process, transformers splits
    the weights of every model that is loaded, and a scorer has no engine to gather them again."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def load_reward_model(path_or_id: str, prm_format: PRMFormat, kwargs: dict[str, Any]) -> PreTrainedModel:
    """
    Loads the model that a format describes, or the LoRA adapter of one.

    Args:
        path_or_id (`str`):
            Folder or Hub id.
        prm_format ([`PRMFormat`]):
            Its format.
        kwargs (`dict`):
            For `from_pretrained`; `revision` and `trust_remote_code` are among them.

    Raises:
        `ValueError`: if the checkpoint lacks weights of the model, its head most of all.
    """
    head, kwargs = prm_format.head, dict(kwargs)
    if head in ("token", "token_mlp"):
        kwargs["num_labels"] = prm_format.num_labels
    if head in AUTO_MODELS and adapter_config(path_or_id, kwargs["revision"]) is not None:
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification

        auto = {"lm": AutoPeftModelForCausalLM, "token": AutoPeftModelForTokenClassification}[head]
        # PEFT draws weights before it reads them: what a policy samples must not depend on when they are loaded.
        with torch.random.fork_rng(devices=[]):
            model = auto.from_pretrained(path_or_id, **kwargs)
        model.config.name_or_path = path_or_id  # PEFT leaves the base model's
        return model
    if head == "token_mlp":
        cls = _with_mlp_head(path_or_id, kwargs)
    else:
        cls = AUTO_MODELS.get(head, AutoModelForCausalLM)
        if head == "token":
            kwargs["key_mapping"] = VALUE_HEAD_NAMES
    model, info = cls.from_pretrained(path_or_id, output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path_or_id}: the checkpoint lacks {', '.join(missing[:4])}{', ...' if missing[4:] else ''} of a model "
            f"with head={head!r} (and has {', '.join(sorted(info['unexpected_keys'])[:4]) or 'nothing else'}), "
            "expected a trained reward model. Pass the prm_format that it was trained with, e.g. "
            'PRMFormat.preset("qwen2.5-math-prm").'
        )
    return model


def adapter_config(path_or_id: str, revision: str | None = None) -> dict[str, Any] | None:
    """PEFT's configuration of a LoRA adapter, `None` where the folder or Hub id is of a whole model."""
    from peft.utils import CONFIG_NAME
    from transformers.utils import cached_file

    file = cached_file(path_or_id, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def load_reference_model(prm_format: PRMFormat, kwargs: dict[str, Any]) -> PreTrainedModel | None:
    """
    Loads the reference model that a format names, if its head needs one; `kwargs` as in [`load_reward_model`].

    Raises:
        `ValueError`: if it needs one and names none.
    """
    if prm_format.head != "implicit":
        return None
    if prm_format.reference_model is None:
        raise ValueError(
            "PRMFormat.reference_model: got None with head='implicit', expected the folder or Hub id of the model "
            "that the reward model was trained against."
        )
    return AutoModelForCausalLM.from_pretrained(prm_format.reference_model, **{**kwargs, "revision": None})


def _with_mlp_head(path_or_id: str, kwargs: dict[str, Any]) -> type[PreTrainedModel]:
    names = ("revision", "trust_remote_code", "num_labels")
    config = AutoConfig.from_pretrained(path_or_id, **{name: kwargs[name] for name in names})
    base = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]

    class TokenClassificationWithMLP(base):
        def __init__(self, config):
            super().__init__(config)
            size = config.get_text_config().hidden_size
            self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.num_labels))

    kwargs.pop("num_labels")
    kwargs.pop("trust_remote_code")
    kwargs["config"] = config
    return TokenClassificationWithMLP
