"""Makes sure that a training trains something: loads an adapter to go on training it, and refuses to start where the
weights that should be trained are frozen."""

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
    Loads a saved adapter with its base model, to go on training the adapter.

    Args:
        path_or_id (`str`):
            Folder or Hub id.
        load_base (`Callable`):
            Loads the base model. It is called with the folder or Hub id of the base model, and `revision=`.
        subject (`str`):
            Name of the trainer, for errors.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The trainer's argument of that name. It is for a new adapter, so it is refused with a saved one.
        revision (`str`, *optional*):
            Revision of the adapter on the Hub.
        autocast_adapter_dtype (`bool`, *optional*, defaults to `True`):
            Whether half-precision adapter weights become float32, see [`~peft.PeftModel`].

    Returns:
        [`~peft.PeftModel`] or `None`: The model with its adapter trainable, `None` where `path_or_id` holds a whole
        model.

    Raises:
        `FileNotFoundError`: if the base model is not at the place that the adapter names.
        `ValueError`: if there is a `peft_config` too, or if a file of the base model is damaged.
    """
    config = adapter_config(path_or_id, revision)
    if config is None:
        return None
    if peft_config is not None:
        raise ValueError(
            f"{subject}: got the adapter {path_or_id!r} together with `peft_config`, expected one of them. Leave out "
            "`peft_config` to go on training the adapter. To train a new one, pass the base model "
            f"{config.get('base_model_name_or_path')!r}, or the result of the loaded adapter's merge_and_unload()."
        )
    from peft import PeftConfig, PeftModel
    from peft.utils import ModulesToSaveWrapper

    # PEFT refuses is_trainable=True for prompts and prefixes. It does not freeze them, but the modules next to them.
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
    Refuses a model whose weights are all frozen, or in which a part that should be trained is.

    Args:
        model (`torch.nn.Module`):
            The model that a trainer is about to train.
        subject (`str`):
            Name of the trainer, for the error.
        parts (`Mapping[str, torch.nn.Module]`, *optional*):
            Modules inside the model that have to be trained too, by a name for the error, e.g.
            `{"the value head": head}`.

    Raises:
        `ValueError`: if there is nothing to train.
    """
    for what, module in {f"the given {type(model).__name__}": model, **(parts or {})}.items():
        names = [name for name, _ in module.named_parameters()]
        if any(parameter.requires_grad for parameter in module.parameters()):
            continue
        shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        raise ValueError(
            f"{subject}: every weight of {what} is frozen ({shown}), expected at least one with "
            f"requires_grad=True. {_remedy(model)}"
        )


def _remedy(model: nn.Module) -> str:
    if hasattr(model, "peft_config"):
        return (
            "Load an adapter to train with peft.PeftModel.from_pretrained(base_model, path, is_trainable=True), or "
            "pass its folder to the trainer. Name other modules that should be trained in the adapter's "
            "`modules_to_save`."
        )
    return "Call requires_grad_(True) on what should be trained, or pass a `peft_config` to train an adapter."
