"""Reads the arguments that all policy trainers share: the model, the tokenizer, and the columns of the dataset."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor

from .._trl import create_model_from_path
from ..io.file_checks import check_model_folder
from ..io.paths import local_path
from ..io.tokenizers import tokenizer_source
from ..training.trainable import load_adapter


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, SFTConfig


def policy_model(
    model: "str | PathLike | PreTrainedModel | PeftModel",
    args: "GRPOConfig | SFTConfig",
    *,
    subject: str,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    quantization_config: "BitsAndBytesConfig | None" = None,
    peft_config: "PeftConfig | None" = None,
) -> "tuple[str | PreTrainedModel | PeftModel, PreTrainedTokenizerBase | None, BitsAndBytesConfig | None]":
    """
    Reads the `model` argument of a policy trainer.

    A saved adapter is loaded with its base model and its saved tokenizer, to continue its training. TRL's trainers
    load all other models.

    Args:
        model (`str` or `PathLike` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A loaded model, or the folder or Hub id of a model or an adapter.
        args ([`~trl.GRPOConfig`] or [`~trl.SFTConfig`]):
            The trainer's configuration. Its `model_init_kwargs` are set to `None` if they were used for an adapter.
        subject (`str`):
            Name of the trainer, for error messages.
        processing_class, quantization_config, peft_config (*optional*):
            Arguments of the trainer.

    Returns:
        `tuple`: `model`, `processing_class` and `quantization_config` for TRL's trainer.

    Raises:
        `ValueError`: if `peft_config` is set for a model with an adapter, or if a file of the model is damaged.
        `FileNotFoundError`: if the base model of an adapter is not at the path that the adapter records.
    """
    if not isinstance(model, (str, PathLike)):
        if peft_config is not None and hasattr(model, "peft_config"):
            raise ValueError(
                f"{subject}: got a {type(model).__name__} with an adapter together with `peft_config`, expected only "
                "one of them. Remove `peft_config` to continue training the adapter. To train a new adapter, pass the "
                "base model, or the result of merge_and_unload()."
            )
        return model, processing_class, quantization_config
    name = local_path(model)
    init_kwargs: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    revision = init_kwargs.pop("revision", None)
    check_model_folder(name, revision)
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        init_kwargs["device_map"] = None

    def load_base(base: str, revision: str | None):
        return create_model_from_path(base, revision=revision, **init_kwargs)

    plugin = args.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    adapter = load_adapter(
        name,
        load_base,
        subject=subject,
        peft_config=peft_config,
        revision=revision,
        # ZeRO-3 gathers parameters in one dtype, so adapters keep the base model's dtype.
        autocast_adapter_dtype=not zero3 or "quantization_config" in init_kwargs,
    )
    if adapter is None:
        return name, processing_class, quantization_config
    args.model_init_kwargs = None  # otherwise TRL warns that it ignores them for a loaded model
    if processing_class is None:
        source, revision = tokenizer_source(name, revision)
        processing_class = AutoProcessor.from_pretrained(
            source,
            revision=revision,
            padding_side="left",
            truncation_side="left",
            trust_remote_code=init_kwargs["trust_remote_code"],
        )
    return adapter, processing_class, None


def columns_of(dataset: "Dataset | IterableDataset | None") -> list[str]:
    """Names of a dataset's columns. They are read from the first row of a streaming dataset that does not know them
    (after `.map`)."""
    if dataset is None:
        return []
    names = getattr(dataset, "column_names", None)
    return list(next(iter(dataset), {}) if names is None else names)


def check_columns(
    subject: str, needed: dict[str, str], train_dataset: Any, eval_dataset: Any, needs_prompt: bool
) -> None:
    """Raises a `ValueError` if a dataset lacks a column. `needed` holds the columns by the argument that sets them."""
    evaluations = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluations}.items():
        columns = columns_of(dataset)
        is_table = dataset is not None and not isinstance(dataset, Mapping)  # TRL refuses a DatasetDict
        if is_table and needs_prompt and "prompt" not in columns:
            raise ValueError(
                f"{subject}: got {name} with the columns {', '.join(columns)}, expected 'prompt' among them. Make "
                "prompts of questions with erprm_trl.policy.prompt_dataset."
            )
        for argument, column in needed.items():
            if dataset is not None and column not in columns:
                raise ValueError(
                    f"{subject}: got {argument}={column!r}, expected one of the columns of {name} "
                    f"({', '.join(columns)}). Set {argument} to one of them, or add the column."
                )


def check_kept_columns(subject: str, needed: list[str], columns: list[str]) -> None:
    """Raises a `ValueError` if `remove_unused_columns` would remove a column that the rewards need."""
    removed = [column for column in needed if column in columns]
    if removed:
        raise ValueError(
            f"{subject}: got remove_unused_columns=True with the column {removed[0]!r}, expected False, because it "
            "keeps only the prompts, and the rewards need this column. Do not set it, or remove the columns that you "
            "do not need from the dataset."
        )
