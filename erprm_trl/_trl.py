"""The only importer of TRL's private or internal names: what moves in TRL is mended here."""

from trl.trainer.base_config import _BaseConfig as BaseConfig
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
from trl.trainer.utils import create_model_from_path, disable_dropout_in_model, get_config_model_id


__all__ = ["BaseConfig", "BaseTrainer", "create_model_from_path", "disable_dropout_in_model", "get_config_model_id"]
