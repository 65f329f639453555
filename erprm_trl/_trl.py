"""The only importer of TRL's private or internal names: what moves in TRL is mended here."""

from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.base_config import _BaseConfig as BaseConfig
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
