"""Exports a reward model with a language-model head as a token classification model with two classes.

An engine such as vLLM serves token classification models. The exported head has two rows of the language-model head:
the row of the bad token for class 0, and the row of the good token for class 1. Its scores are therefore the same.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PreTrainedModel

from ...io.file_checks import check_model_folder
from ...io.paths import local_path
from ...io.tokenizers import load_tokenizer
from ..heads import refuse_virtual_tokens
from ..prm_format import PRMFormat, resolve_format
from ..reference_model import unpartitioned
from .weights import load_reward_model


LABELS = {0: "bad", 1: "good"}
# Logits that the probe puts in place of the head's. They are large enough to show a soft cap.
_PROBE_LOGITS = (-64.0, -1.0, 1.0, 64.0)
_PROBE_TEXT = "Käse costs 12,345.5 €:\n\n  48/2 = 24\tклипов.\nIt's 数学, \\boxed{-7}"


def export_reward_model(
    path_or_id: str | Path,
    folder: str | Path,
    *,
    prm_format: PRMFormat | str | None = None,
    dtype: "str | torch.dtype" = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PRMFormat:
    """
    Loads a reward model or LoRA adapter on the CPU and exports it; see [`StepScorer.export_token_classifier`].

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id of the reward model.
        folder (`str` or `Path`):
            Folder for the exported model.
        prm_format, dtype, revision, trust_remote_code (*optional*):
            See [`StepScorer.from_pretrained`].

    Returns:
        [`PRMFormat`]: the format of the exported model.
    """
    path_or_id = local_path(path_or_id)
    check_model_folder(path_or_id, revision)
    prm_format = resolve_format(prm_format, path_or_id, revision)
    _check_request(prm_format, folder)
    tokenizer = load_tokenizer(path_or_id, revision=revision, trust_remote_code=trust_remote_code)
    prm_format.token_ids(tokenizer)  # raises its errors before the weights are loaded
    kwargs: dict[str, Any] = {"dtype": dtype, "device_map": None, "revision": revision}
    with unpartitioned():
        model = load_reward_model(path_or_id, prm_format, {**kwargs, "trust_remote_code": trust_remote_code})
    return save_token_classifier(model, tokenizer, prm_format, folder)


@torch.no_grad()
def save_token_classifier(model: nn.Module, tokenizer, prm_format: PRMFormat, folder: str | Path) -> PRMFormat:
    """
    Saves a reward model as a token classification model, with its tokenizer and format. Adapters are merged into
    `model` itself, so pass a copy of a model that is used afterwards.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prm_format ([`PRMFormat`]):
            Format of the model.
        folder (`str` or `Path`):
            Folder for the exported model.

    Returns:
        [`PRMFormat`]: the format of the exported model.

    Raises:
        `ValueError`: if the head of the format cannot be exported, if the folder has a model, or if the architecture
            has no token classification model with the same scores.
    """
    _check_request(prm_format, folder)
    model = _merged(model.eval())
    exported = dataclasses.replace(prm_format, head="token")
    if prm_format.head == "lm":
        exported = dataclasses.replace(exported, num_labels=2)
        ids = prm_format.token_ids(tokenizer)
        model = _token_classifier(model, bad=ids.bad, good=ids.good)
    folder = local_path(folder)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_saved_tokenizer(tokenizer, folder)
    model.save_pretrained(folder)
    exported.save(folder)  # at last, because nothing loads a folder without a format
    return exported


def _check_saved_tokenizer(tokenizer, folder: str) -> None:
    """AutoTokenizer chooses a tokenizer's class by the model in its folder, and another class may split texts
    differently."""
    saved = load_tokenizer(folder)
    if saved(_PROBE_TEXT)["input_ids"] != tokenizer(_PROBE_TEXT)["input_ids"]:
        raise ValueError(
            f"{folder}: AutoTokenizer reads the saved tokenizer as {type(saved).__name__}, which encodes texts "
            f"differently from the model's {type(tokenizer).__name__}, expected the same ids. Score with the model "
            "itself: StepScorer(model, tokenizer, prm_format)."
        )


def _check_request(prm_format: PRMFormat, folder: str | Path) -> None:
    if prm_format.head not in ("lm", "token"):
        raise ValueError(
            f"export: got head={prm_format.head!r}, expected 'lm', or 'token' to merge an adapter. A linear layer "
            "with two classes cannot express the other heads. Score with the model itself."
        )
    if Path(local_path(folder), "config.json").exists():
        raise ValueError(f"{folder}: got a folder with a model, expected a new folder. Choose another one.")


def _merged(model: nn.Module) -> PreTrainedModel:
    """Merges adapters into the weights of their base model."""
    refuse_virtual_tokens(model, "export")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "export: got a quantized model, expected weights in a floating-point dtype, because adapters and the head "
            "are merged into them. Load the model without quantization."
        )
    if not hasattr(model, "peft_config"):
        return model
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            raise ValueError(
                f"export: got an adapter of PEFT's type {config.peft_type.value}, which adds keys and values to the "
                "attention, expected an adapter that can be merged into the weights. Train with LoRA, or score with "
                "the model itself."
            )
    _untie(model)
    return model.merge_and_unload()


def _untie(model: nn.Module) -> None:
    """Gives the output embeddings weights of their own. Otherwise, merging an adapter of the head would change the
    tied input embeddings, too."""
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    embeddings = model.get_input_embeddings()
    embeddings = getattr(embeddings, "base_layer", embeddings)
    if head is not None and getattr(head, "weight", None) is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _token_classifier(model: PreTrainedModel, bad: int, good: int) -> PreTrainedModel:
    """The token classification model of the same architecture, around the same base model."""
    name, head = model.config.model_type, model.get_output_embeddings()
    if type(model.config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"export: got the architecture {name!r}, for which transformers has no token classification model, "
            "expected one that has it, such as Qwen2, Qwen3, Llama, Mistral or Gemma. Score with the model itself, or "
            "serve it with erprm serve."
        )
    hidden, base_output, scale = _probe(model, head)
    if type(head) is not nn.Linear or not _same(hidden, base_output):
        raise ValueError(
            f"export: got the architecture {name!r}, whose language-model head is more than one linear layer on the "
            "base model, expected one linear layer. Score with the model itself, or serve it with erprm serve."
        )
    config = copy.deepcopy(model.config)
    config.num_labels = len(LABELS)
    config.id2label, config.label2id = LABELS, {label: index for index, label in LABELS.items()}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # allocates and initialises nothing
        classifier = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)](config)
    prefix = classifier.base_model_prefix
    layers = [key for key, layer in classifier.named_children() if type(layer) is nn.Linear]
    setattr(classifier, prefix, getattr(model, model.base_model_prefix))
    rows = [bad, good]
    with_bias = getattr(classifier, layers[0]).bias is not None
    new_head = nn.Linear(head.in_features, len(rows), bias=with_bias, dtype=head.weight.dtype)
    new_head.weight.copy_(head.weight[rows] * scale)
    if with_bias:
        new_head.bias.copy_(torch.zeros(len(rows)) if head.bias is None else head.bias[rows] * scale)
    setattr(classifier, layers[0], new_head.to(head.weight.device))
    return classifier.eval()


def _same(hidden: Tensor, expected: Tensor) -> bool:
    return hidden.shape == expected.shape and torch.allclose(hidden, expected, rtol=1e-2, atol=1e-3)


def _probe(model: PreTrainedModel, head: nn.Module) -> tuple[Tensor, Tensor, float]:
    """
    Runs the model on a few tokens with known logits in place of its head's.

    Returns:
        The hidden states that the head gets, the output of the base model, and the factor between the head's logits
        and the model's.

    Raises:
        `ValueError`: if the model's logits are another function of the head's.
    """
    received = []
    known = torch.tensor(_PROBE_LOGITS, device=model.device)

    def forward(hidden: Tensor) -> Tensor:
        received.append(hidden)
        return known.to(hidden.dtype).expand(*hidden.shape[:-1], len(known))

    ids = torch.arange(4, device=model.device)[None]
    own_forward, head.forward = head.forward, forward
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        head.forward = own_forward
    base_output = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
    scale = float(logits[0, -1, 2])  # of the known logit 1
    if not torch.allclose(logits, (known * scale).expand_as(logits), rtol=1e-2, atol=0):
        raise ValueError(
            f"export: got the architecture {model.config.model_type!r}, which changes its logits after the head (a "
            "soft cap, as in Gemma 2), expected logits of a linear layer. Score with the model itself, or serve it "
            "with erprm serve."
        )
    return received[0], base_output, scale
