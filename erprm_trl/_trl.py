"""The only importer of TRL's private or internal names: what moves in TRL is mended here. All but the configuration,
which command lines need, is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

from trl.trainer.base_config import _BaseConfig as BaseConfig


if TYPE_CHECKING:
    from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
    from trl.trainer.utils import (
        FusedCausalLMOutput,
        create_model_from_path,
        disable_dropout_in_model,
        get_config_model_id,
    )

__all__ = [
    "BaseConfig",
    "BaseTrainer",
    "FusedCausalLMOutput",
    "create_model_from_path",
    "disable_dropout_in_model",
    "get_config_model_id",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
]


def __getattr__(name: str):
    if name == "BaseTrainer":
        return import_module("trl.trainer.base_trainer")._BaseTrainer
    if name in ("prepare_deepspeed", "unwrap_model_for_generation"):
        return getattr(import_module("trl.models.utils"), name)
    if name in __all__:
        return getattr(import_module("trl.trainer.utils"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
