"""Loads saved adapters for further training, and raises an error if the weights that should be trained are frozen."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from ..io.adapters import adapter_config, base_of_adapter


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


def load_adapter(
    path_or_id: str,
    load_base: "Callable[..., PreTrainedModel]",
    *,
    subject: str,
    peft_config: "PeftConfig | None" = None,
    revision: str | None = None,
    autocast_adapter_dtype: bool = True,
) -> "PeftModel | None":
    """
    Loads a saved adapter with its base model, for further training of the adapter.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the adapter, or of a full model.
        load_base (`Callable`):
            Function that loads the base model. It is called with the folder or Hub id of the base model, and
            `revision=`.
        subject (`str`):
            Name of the trainer, for errors.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of a new adapter, as passed to the trainer. It cannot be combined with a saved adapter.
        revision (`str`, *optional*):
            Revision of the adapter on the Hub.
        autocast_adapter_dtype (`bool`, *optional*, defaults to `True`):
            Whether half-precision adapter weights are converted to float32, see [`~peft.PeftModel`].

    Returns:
        [`~peft.PeftModel`] or `None`: the model with a trainable adapter, or `None` if `path_or_id` contains a full
        model.

    Raises:
        `FileNotFoundError`: if the base model that the adapter names does not exist.
        `ValueError`: if `peft_config` is passed for a saved adapter, or if a file of the base model is damaged.
    """
    config = adapter_config(path_or_id, revision)
    if config is None:
        return None
    if peft_config is not None:
        raise ValueError(
            f"{subject}: got the adapter {path_or_id!r} together with `peft_config`, expected one of them. Leave out "
            "`peft_config` to continue training the adapter. To train a new adapter, pass the base model "
            f"{config.get('base_model_name_or_path')!r}, or the result of the loaded adapter's merge_and_unload()."
        )
    from peft import PeftConfig, PeftModel
    from peft.utils import ModulesToSaveWrapper

    # PEFT does not accept is_trainable=True for prompts and prefixes. It leaves them trainable, but freezes the
    # modules in `modules_to_save`.
    is_prompt = PeftConfig.from_pretrained(path_or_id, revision=revision).is_prompt_learning
    base = load_base(base_of_adapter(path_or_id, config), revision=config.get("revision"))
    model = PeftModel.from_pretrained(
        base, path_or_id, is_trainable=not is_prompt, revision=revision, autocast_adapter_dtype=autocast_adapter_dtype
    )
    if is_prompt:
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.modules_to_save.requires_grad_(True)
    return model


def check_trainable(model: nn.Module, *, subject: str, parts: Mapping[str, nn.Module] | None = None) -> None:
    """
    Checks that a model has trainable weights, and that its parts have trainable weights.

    Args:
        model (`torch.nn.Module`):
            Model that is about to be trained.
        subject (`str`):
            Name of the trainer, for errors.
        parts (`Mapping[str, torch.nn.Module]`, *optional*):
            Modules inside the model that must be trainable too, by their names in errors, e.g.
            `{"the value head": head}`.

    Raises:
        `ValueError`: if all weights of the model, or of a part, are frozen.
    """
    for part, module in {f"the given {type(model).__name__}": model, **(parts or {})}.items():
        names = [name for name, _ in module.named_parameters()]
        if any(parameter.requires_grad for parameter in module.parameters()):
            continue
        shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        raise ValueError(
            f"{subject}: every weight of {part} is frozen ({shown}), expected at least one weight with "
            f"requires_grad=True. {_remedy(model)}"
        )


def _remedy(model: nn.Module) -> str:
    if hasattr(model, "peft_config"):
        return (
            "Load an adapter to train with peft.PeftModel.from_pretrained(base_model, path, is_trainable=True), or "
            "pass its folder to the trainer. Name other modules that should be trained in the adapter's "
            "`modules_to_save`."
        )
    return "Call requires_grad_(True) on the weights to train, or pass a `peft_config` to train an adapter."
