"""Prepares the model, the tokenizer and the format for training: loading, new tokens, adapters, dropout, padding."""

import copy
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..._trl import create_model_from_path, disable_dropout_in_model, get_config_model_id
from ...io.adapters import adapter_config, base_of_adapter
from ...io.file_checks import check_model_folder
from ...io.loaded_weights import refuse_random_lm_head
from ...io.tokenizers import load_tokenizer
from ...training.trainable import check_trainable, load_adapter
from ..heads import AUTO_MODELS, VALUE_HEAD_NAMES, check_architecture, fit_embeddings, refuse_virtual_tokens
from ..presets import preset_of
from ..prm_format import PRMFormat
from .erprm_config import ERPRMConfig


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)

TASKS = {"lm": "CAUSAL_LM", "token": "TOKEN_CLS", "implicit": "CAUSAL_LM"}


def check_arguments(model: Any, data_collator: Any) -> None:
    """Refuses arguments of [`ERPRMTrainer`] that TRL's `PRMTrainer` accepted."""
    if model is None:
        raise ValueError("ERPRMTrainer: got no model, expected a model, a folder or a Hub id. Pass `model`.")
    if isinstance(data_collator, DataCollatorForTokenClassification):
        raise ValueError(
            "data_collator: got a DataCollatorForTokenClassification, as for TRL's PRMTrainer, expected a collator of "
            "steps with soft labels. Leave it out."
        )


def prepare_model(
    model: "str | PreTrainedModel",
    args: ERPRMConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    quantization_config: "BitsAndBytesConfig | None",
    peft_config: "PeftConfig | None",
    default_format: PRMFormat | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PRMFormat]":
    """
    Prepares the model of [`ERPRMTrainer`] for training.

    Args:
        model, args, tokenizer, quantization_config, peft_config:
            Arguments of the trainer.
        default_format ([`PRMFormat`], *optional*):
            Format fields to use where neither the arguments nor the model set them.

    Returns:
        `tuple`: the model (with a new adapter if `peft_config` is set), its tokenizer (with a padding token if it has
        an end-of-text token), and the format to train with.

    Raises:
        `ValueError`: if the tokenizer does not know the format's tokens, if the model does not fit the head, if the
            head can only score, if there is nothing to train, or if the adapter inserts virtual tokens before the
            text.
        `FileNotFoundError`: if the base model of a saved adapter is not at the path that the adapter records.
        `TypeError`: if `peft_config` is not a `PeftConfig`.
    """
    set_seed(args.seed)  # new heads, tokens and adapters are initialised at random
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    init_kwargs = dict(args.model_init_kwargs or {}) if isinstance(model, str) else {}
    revision = init_kwargs.get("revision")
    if isinstance(model, str):
        check_model_folder(model, revision)
    prm_format = _choose_format(model, name, args, revision, default_format)
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
    added = prm_format.add_missing_tokens(tokenizer) if args.add_missing_tokens else []
    if prm_format.head == "implicit":
        prm_format = _with_reference(prm_format, model, name, args, added)
    prm_format.token_ids(tokenizer)  # raises its errors before the weights are loaded

    if isinstance(model, str):
        if quantization_config is not None:
            init_kwargs["quantization_config"] = quantization_config
        model = _load(model, args, tokenizer, prm_format, init_kwargs, peft_config)
    elif args.model_init_kwargs or quantization_config is not None:
        logger.warning("model_init_kwargs and quantization_config are ignored, because the model is already loaded.")
    _check_head(model, prm_format)
    fit_embeddings(model, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if peft_config is not None:
        model = _wrap(model, args, tokenizer, prm_format, peft_config, added)
    if hasattr(model, "peft_config"):
        _prepare_adapter(model, args)
    check_trainable(model, subject="ERPRMTrainer", parts=_new_parts(model, prm_format, added))
    if args.disable_dropout:
        disable_dropout_in_model(model)
    return model, tokenizer, prm_format


def _choose_format(
    model: "str | PreTrainedModel",
    name: str,
    args: ERPRMConfig,
    revision: str | None,
    default: PRMFormat | None,
) -> PRMFormat:
    """Returns the format to train with. A token classification model keeps its head if no format is saved or set."""
    saved = _saved_format(name, revision)
    prm_format = args.resolve_format(saved, default)
    if saved is None and args.format_preset is None and args.head in (None, "token"):
        num_labels = _labels_of_classifier(model, args, revision)
        if num_labels is not None:
            if isinstance(model, str) or _had_classifier(model.config):  # not a new head on a language model
                logger.warning(
                    "%s is a token classification model without prm_format.json. Its head with num_labels=%d is "
                    "trained, after the prompt %r. Set format_preset='trl-prm' if TRL's PRMTrainer trained it.",
                    name or type(model).__name__, num_labels, prm_format.prompt_template,
                )  # fmt: skip
            prm_format = replace(prm_format, head="token", num_labels=num_labels)
    if prm_format.head not in AUTO_MODELS:
        raise ValueError(
            f"ERPRMTrainer: got a format with head={prm_format.head!r}, which can only score (StepScorer), expected "
            f"one of {', '.join(AUTO_MODELS)}. Train the model's base model with one of these heads."
        )
    return prm_format


def _with_reference(
    prm_format: PRMFormat, model: "str | PreTrainedModel", name: str, args: ERPRMConfig, added: list[str]
) -> PRMFormat:
    """Checks the arguments of an implicit reward model, and sets its reference model if it is not set."""
    refused = {
        "packing=True": args.packing,
        "label_weighting='precision'": args.label_weighting != "none",
        f"the new tokens {added}, which the reference model does not know": added,
    }
    for shown, is_set in refused.items():
        if is_set:
            raise ValueError(
                f"ERPRMTrainer: got head='implicit' with {shown}, expected head='implicit' without it. Remove it, or "
                "choose another head."
            )
    if prm_format.reference_model is not None:
        return prm_format
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    adapter = adapter_config(model, revision) if isinstance(model, str) else None
    reference = name if adapter is None else base_of_adapter(name, adapter)
    if not reference or revision not in (None, "main"):
        shown = f"revision {revision!r} of a model" if reference else f"a {type(model).__name__} without a name"
        raise ValueError(
            f"reference_model: got None with head='implicit' and {shown}, expected a folder or Hub id, from which "
            "scoring can load the reference model. Save the model that the training starts from, and set "
            "reference_model to its folder."
        )
    return replace(prm_format, reference_model=reference)


def _labels_of_classifier(model: "str | PreTrainedModel", args: ERPRMConfig, revision: str | None) -> int | None:
    """Number of labels of a token classification model, `None` for any other model."""
    if not isinstance(model, str):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return base.config.num_labels if "ForTokenClassification" in type(base).__name__ else None
    adapter = adapter_config(model, revision)
    if adapter is None:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
        return config.num_labels if _had_classifier(config) else None
    if adapter.get("task_type") != "TOKEN_CLS":
        return None
    base = base_of_adapter(model, adapter)
    options = {"revision": adapter.get("revision"), "trust_remote_code": args.trust_remote_code}
    return AutoConfig.from_pretrained(base, **options).num_labels


def _had_classifier(config: PreTrainedConfig) -> bool:
    """Whether the configuration's checkpoint is a token classification model."""
    return any("ForTokenClassification" in name for name in config.architectures or [])


def _load(
    path_or_id: str,
    args: ERPRMConfig,
    tokenizer: PreTrainedTokenizerBase,
    prm_format: PRMFormat,
    init_kwargs: dict[str, Any],
    peft_config: "PeftConfig | None",
) -> "PreTrainedModel":
    """Loads a model, or a saved adapter with its base model."""
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        init_kwargs["device_map"] = None
    if prm_format.head == "token":
        init_kwargs["num_labels"] = prm_format.num_labels
        # Only for models that need it: a model that is loaded under ZeRO-3 with a key mapping is saved with the old
        # names.
        if "skywork-o1-prm" in (args.format_preset, preset_of(path_or_id)):
            init_kwargs.setdefault("key_mapping", VALUE_HEAD_NAMES)
    init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)

    def load(name: str, **options: Any) -> "PreTrainedModel":
        if prm_format.head == "token":
            where = {"revision": init_kwargs.get("revision"), **options}
            config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code, **where)
            check_architecture(name, config, prm_format.head)
        options = {**init_kwargs, **options, "output_loading_info": True}
        model, info = create_model_from_path(name, AUTO_MODELS[prm_format.head], **options)
        if prm_format.head != "token":
            refuse_random_lm_head(name, model, info["missing_keys"], "Or set head='token' to train a new head.")
        fit_embeddings(model, tokenizer)
        return model

    adapted = load_adapter(
        path_or_id,
        load,
        subject="ERPRMTrainer",
        peft_config=peft_config,
        revision=init_kwargs.get("revision"),
        autocast_adapter_dtype=not _uses_zero3(args),
    )
    return load(path_or_id) if adapted is None else adapted


def _new_parts(model, prm_format: PRMFormat, added: list[str]) -> dict[str, Any]:
    """Weights that must be trained because they are random: a head that the checkpoint lacks, and new embeddings."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = {}
    if prm_format.head == "token" and not _had_classifier(base.config):
        parts["the new token classification head"] = _classifier(base)
    if added:
        parts[f"the embeddings of the new tokens {added}"] = model.get_input_embeddings()
    return parts


def _uses_zero3(args: ERPRMConfig) -> bool:
    return args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3


def _prepare_adapter(model, args: ERPRMConfig) -> None:
    """Checks that a model's adapters can be trained, and enables gradients for them."""
    refuse_virtual_tokens(model, "ERPRMTrainer")
    if not args.gradient_checkpointing:
        return
    for config in model.peft_config.values():
        if config.is_prompt_learning:  # transformers drops its keys and values when it recomputes a layer
            raise ValueError(
                f"ERPRMTrainer: got an adapter of PEFT's type {config.peft_type.value} with "
                "gradient_checkpointing=True, which does not train it, expected gradient_checkpointing=False. Set "
                "gradient_checkpointing=False."
            )
    model.enable_input_require_grads()
    if _uses_zero3(args):  # with adapters, DeepSpeed's gathering fails in non-reentrant recomputation
        args.gradient_checkpointing_kwargs = {**(args.gradient_checkpointing_kwargs or {}), "use_reentrant": True}


def longest_text(model, max_length: int | None) -> int | None:
    """Returns `max_length`, or the model's context length if that is shorter. A longer text could not be scored."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min((limit for limit in (max_length, context) if limit is not None), default=None)


def _saved_format(name: str, revision: str | None) -> PRMFormat | None:
    if not name:
        return None
    try:
        return PRMFormat.load(name, revision)
    except FileNotFoundError:
        return None


def _check_head(model, prm_format: PRMFormat) -> None:
    num_labels = getattr(model.config, "num_labels", None)
    if prm_format.head == "token" and (
        model.get_output_embeddings() is not None or num_labels != prm_format.num_labels
    ):
        raise ValueError(
            f"head='token': got a {type(model).__name__} with num_labels={num_labels}, expected a token "
            f"classification model with num_labels={prm_format.num_labels}. Load it with "
            f"AutoModelForTokenClassification.from_pretrained(..., num_labels={prm_format.num_labels}), or pass the "
            "model's name."
        )
    if prm_format.head in ("lm", "implicit") and model.get_output_embeddings() is None:
        raise ValueError(
            f"head={prm_format.head!r}: got a {type(model).__name__} without a language-model head, expected a causal "
            "language model. Load it with AutoModelForCausalLM, or do not set `head` to train the model's own head."
        )


def _wrap(model, args: ERPRMConfig, tokenizer, prm_format: PRMFormat, peft_config: "PeftConfig", added: list[str]):
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"peft_config: got {type(peft_config).__name__}, expected a peft.PeftConfig. Pass e.g. a LoraConfig."
        )
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"ERPRMTrainer: got a {type(model).__name__} with an adapter together with `peft_config`, expected only "
            "one of them. Remove `peft_config` to continue training the adapter. To train a new adapter, pass the "
            "base model, or the result of merge_and_unload()."
        )
    peft_config = copy.deepcopy(peft_config)
    # The default task type of LoraConfig and of TRL's ModelConfig may be wrong for this head.
    peft_config.task_type = TASKS[prm_format.head]
    if prm_format.head == "token" and hasattr(peft_config, "modules_to_save"):
        # The whole head is trained and saved. Naming it here also excludes it from "all-linear".
        head = _module_name(model, _classifier(model))
        peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), head})
    if added:
        if not hasattr(peft_config, "trainable_token_indices"):
            raise ValueError(
                f"ERPRMTrainer: got a {type(peft_config).__name__} and new tokens {added}, expected an adapter that "
                "can train their embeddings. Use a LoraConfig, or choose tokens that the tokenizer knows."
            )
        # Embeddings of new tokens are random, and an adapter around frozen embeddings would never train them.
        indices = tokenizer.convert_tokens_to_ids(added)
        names = [_module_name(model, model.get_input_embeddings())]
        whole = {module.rpartition(".")[2] for module in peft_config.modules_to_save or ()}
        if prm_format.head == "lm":
            output = _module_name(model, model.get_output_embeddings())
            if not model.config.get_text_config().tie_word_embeddings:
                names.append(output)
            elif output in whole and names[0] not in whole:  # PEFT cannot train rows of one of two tied modules
                raise ValueError(
                    f"peft_config: got modules_to_save={sorted(whole)}, new tokens {added}, and a model in which "
                    f"{output} shares its weights with {names[0]}, expected both or none of them. Remove '{output}' "
                    f"to train only the rows of the new tokens, or add '{names[0]}' to train and save both as a whole."
                )
        own = peft_config.trainable_token_indices or {}
        own = {names[0]: own} if isinstance(own, list) else own
        rows = {name: [*own.get(name, []), *indices] for name in names if name not in whole}
        peft_config.trainable_token_indices = (own | rows) or None
    # ZeRO-3 gathers parameters in one dtype, so adapters keep the base model's dtype.
    return get_peft_model(model, peft_config, autocast_adapter_dtype=not _uses_zero3(args))


def _classifier(model):
    """The head of a token classification model, which transformers names `score` or `classifier`."""
    return getattr(model, "score", None) or model.classifier


def _module_name(model, module) -> str:
    return next(name for name, other in model.named_modules() if other is module).rpartition(".")[2]
