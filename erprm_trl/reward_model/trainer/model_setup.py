"""Makes model, tokenizer and format agree before training: loading, new tokens, adapters, dropout, padding."""

import logging
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from ..._trl import create_model_from_path, disable_dropout_in_model, get_config_model_id
from ...io.file_checks import check_model_folder
from ..heads import AUTO_MODELS, VALUE_HEAD_NAMES
from ..presets import preset_of
from ..prm_format import PRMFormat
from .erprm_config import ERPRMConfig


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)


def prepare_model(
    model: "str | PreTrainedModel",
    args: ERPRMConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    quantization_config: "BitsAndBytesConfig | None",
    peft_config: "PeftConfig | None",
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PRMFormat]":
    """
    Everything [`ERPRMTrainer`] does to its model before training.

    Returns:
        `tuple`: the model (wrapped by PEFT if asked), its tokenizer with a padding token, and the format to train
        with.

    Raises:
        `ValueError`: if the format's tokens are not one id each, the model does not fit the head, or the head is one
            that is scored with alone.
        `TypeError`: if `peft_config` is no `PeftConfig`.
    """
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    init_kwargs = dict(args.model_init_kwargs or {}) if isinstance(model, str) else {}
    revision = init_kwargs.get("revision")
    if isinstance(model, str):
        check_model_folder(model)
    prm_format = args.resolve_format(_saved_format(name, revision))
    if prm_format.head not in AUTO_MODELS:
        raise ValueError(
            f"ERPRMTrainer: got a format with head={prm_format.head!r}, which is for scoring alone (StepScorer), "
            f"expected one of {', '.join(AUTO_MODELS)}. Train from the model's base with one of these."
        )
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    added = prm_format.add_missing_tokens(tokenizer) if args.add_missing_tokens else []
    prm_format.token_ids(tokenizer)  # before the weights are loaded: an error here is cheap

    if isinstance(model, str):
        if quantization_config is not None:
            init_kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            init_kwargs["device_map"] = None
        if prm_format.head == "token":
            init_kwargs["num_labels"] = prm_format.num_labels
            # Only where it has something to rename: loaded under ZeRO-3, a model is saved under the old names again.
            if "skywork-o1-prm" in (args.format_preset, preset_of(name)):
                init_kwargs.setdefault("key_mapping", VALUE_HEAD_NAMES)
        init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        set_seed(args.seed)  # a new scalar head is random
        model = create_model_from_path(model, AUTO_MODELS[prm_format.head], **init_kwargs)
    elif args.model_init_kwargs or quantization_config is not None:
        logger.warning("The model is already instantiated: model_init_kwargs and quantization_config are not used.")
    _check_head(model, prm_format)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if peft_config is not None:
        model = _wrap(model, args, tokenizer, prm_format, peft_config, added)
    elif args.gradient_checkpointing and hasattr(model, "peft_config"):
        model.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout_in_model(model)
    return model, tokenizer, prm_format


def longest_text(model, max_length: int | None) -> int | None:
    """`max_length`, or the model's context where that is shorter: what is longer could not be scored later."""
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
    wanted = prm_format.num_labels
    if prm_format.head == "token" and getattr(model.config, "num_labels", None) != wanted:
        raise ValueError(
            f"head='token': got a model with num_labels={getattr(model.config, 'num_labels', None)}, expected token "
            f"classification with num_labels={wanted}. Load it with AutoModelForTokenClassification.from_pretrained("
            f"..., num_labels={wanted}), or pass the model's name."
        )
    if prm_format.head == "lm" and model.get_output_embeddings() is None:
        raise ValueError(
            f"head='lm': got {type(model).__name__} without a language-model head, expected a causal language model. "
            "Load it with AutoModelForCausalLM, or choose head='token'."
        )


def _wrap(model, args: ERPRMConfig, tokenizer, prm_format: PRMFormat, peft_config: "PeftConfig", added: list[str]):
    from peft import PeftConfig, PeftModel, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"`peft_config` must be a peft.PeftConfig (e.g. LoraConfig), got {type(peft_config).__name__}."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "Got a PeftModel together with `peft_config`. Pass the PeftModel alone to go on training its adapter, or "
            "merge and unload it first."
        )
    if prm_format.head == "token":
        # The default of LoraConfig and of TRL's ModelConfig is another task. The scalar head is new: it is trained and
        # saved whole, and named here so that "all-linear" leaves it out.
        peft_config.task_type = "TOKEN_CLS"
        peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), "score"})
    if added:
        # Rows of new tokens are random: an adapter around frozen embeddings would never learn them.
        indices = tokenizer.convert_tokens_to_ids(added)
        names = [_module_name(model, model.get_input_embeddings())]
        if prm_format.head == "lm" and not model.config.get_text_config().tie_word_embeddings:
            names.append(_module_name(model, model.get_output_embeddings()))
        own = peft_config.trainable_token_indices or {}
        own = {names[0]: own} if isinstance(own, list) else own
        peft_config.trainable_token_indices = own | {name: [*own.get(name, []), *indices] for name in names}
    plugin = args.deepspeed_plugin
    # ZeRO-3 gathers parameters in one dtype, so adapters keep the base model's.
    zero3 = plugin is not None and plugin.zero_stage == 3
    model = get_peft_model(model, peft_config, autocast_adapter_dtype=not zero3)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
        if zero3:  # DeepSpeed's gathering does not survive non-reentrant recomputation under adapters
            args.gradient_checkpointing_kwargs = {**(args.gradient_checkpointing_kwargs or {}), "use_reentrant": True}
    return model


def _module_name(model, module) -> str:
    return next(name for name, other in model.named_modules() if other is module).rpartition(".")[2]
