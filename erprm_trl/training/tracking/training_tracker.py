"""What a trainer of this package has beside its metrics: its trackers, its throughput, and its artifacts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, default_logdir
from transformers.trainer_utils import get_last_checkpoint

from ...io.redaction import redacted
from .throughput import Throughput
from .trackers import Trackers


# Weights, configurations, tokenizers, the format and the card. `training_args.bin` holds secrets; the optimizer's
# and the random generators' states serve only to resume.
MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md"}
NOT_MODEL_FILES = {"trainer_state.json"}


class TrainingTracker(TrainerCallback):
    """
    Made by a trainer at the end of its constructor; adds itself and [`Throughput`] to the callbacks.

    Args:
        trainer ([`~transformers.Trainer`]):
            Its arguments are derived from [`TrackingConfig`].
        manifest (`Callable`, *optional*):
            Returns what the data is, as JSON holds it, or `None`.
        at_start (`Callable`, *optional*):
            Called on every process when the trackers of a training have just started.
        last_model (`Callable`, *optional*):
            Returns the folder of the last model that was saved, or `None`. Defaults to the last checkpoint's.

    Attributes:
        trackers ([`Trackers`]): those of the trainer.
        throughput ([`Throughput`]): the trainer counts its batches there.
    """

    def __init__(
        self,
        trainer,
        manifest: Callable[[], Any] = lambda: None,
        at_start: Callable[[], None] = lambda: None,
        last_model: Callable[[], str | Path | None] | None = None,
    ):
        args = trainer.args
        self.trackers = Trackers.of(trainer)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.throughput = Throughput(trainer.model, trainer.accelerator, dtype)
        self._manifest, self._at_start = manifest, at_start
        self._last_model = last_model or (lambda: get_last_checkpoint(args.output_dir))
        self._begun = False
        args._shown_of_model = _shown(trainer.model)
        for callback in trainer.callback_handler.callbacks:
            # Its folder is set only when a training begins: what is logged before goes to the working directory.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(args.output_dir, default_logdir()))
        trainer.add_callback(self.throughput)
        # Trackers end their runs at the end of a training: what is logged then has to come before them.
        trainer.callback_handler.callbacks.insert(0, self)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Once, and then all trackers have started."""
        if self._begun:
            return
        self._begun = True
        self._at_start()
        if "config" in (args.log_artifacts or ()):
            self.trackers.artifact("config", lambda: {"config.json": _json(args.to_dict())})
        if "data" in (args.log_artifacts or ()):
            self.trackers.artifact("data", lambda: {"manifest.json": _json(redacted(self._manifest()))})

    def on_train_end(self, args, state, control, **kwargs):
        """Logs the last model."""
        if "checkpoint" in (args.log_artifacts or ()):
            self.trackers.artifact("checkpoint", self._model_files)

    def _model_files(self) -> dict[str, Path]:
        folder = self._last_model()
        if folder is None:
            raise FileNotFoundError("log_artifacts: no checkpoint was saved, expected one. Set save_strategy.")
        return {
            path.name: path
            for path in sorted(Path(folder).iterdir())
            if path.suffix in MODEL_FILES and path.name not in NOT_MODEL_FILES
        }


def _shown(model) -> dict[str, Any]:
    # Laid over what transformers' callbacks take from the model themselves: absolute paths among it.
    shown: dict[str, Any] = {"_name_or_path": getattr(model.config, "_name_or_path", "")}
    if hasattr(model, "peft_config"):
        shown["peft_config"] = {name: config.to_dict() for name, config in model.peft_config.items()}
    return shown


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
