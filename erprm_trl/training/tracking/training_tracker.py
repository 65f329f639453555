"""The callback that gives a trainer its trackers, its throughput metrics and its artifacts."""

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


# Weights, configurations, tokenizers, the format and the model card. `training_args.bin` is left out because it may
# contain secrets, the states of the optimizer and the random generators because they are only needed to resume.
MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md"}
NOT_MODEL_FILES = {"trainer_state.json"}


class TrainingTracker(TrainerCallback):
    """
    A callback that a trainer creates at the end of its constructor. It adds itself and [`Throughput`] to the callbacks
    of the trainer.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer whose arguments derive from [`TrackingConfig`].
        manifest (`Callable`, *optional*):
            Function that returns a description of the data as JSON values, or `None`.
        at_start (`Callable`, *optional*):
            Function that is called on every process after the trackers have started.
        last_model (`Callable`, *optional*):
            Function that returns the folder of the last saved model, or `None`. Defaults to the last checkpoint.

    Attributes:
        trackers ([`Trackers`]): trackers of the trainer.
        throughput ([`Throughput`]): throughput counter, to which the trainer adds its batches.
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
            # Without a folder here, values that are logged before training starts would go to the working directory.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(args.output_dir, default_logdir()))
        trainer.add_callback(self.throughput)
        # Trackers close their runs at the end of training, so this callback must run before them.
        trainer.callback_handler.callbacks.insert(0, self)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Logs the configuration and the data once, after all trackers have started."""
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
            raise FileNotFoundError(
                "log_artifacts: no checkpoint was saved, expected one to log as an artifact. Set save_strategy."
            )
        return {
            path.name: path
            for path in sorted(Path(folder).iterdir())
            if path.suffix in MODEL_FILES and path.name not in NOT_MODEL_FILES
        }


def _shown(model) -> dict[str, Any]:
    # These values replace those that transformers' callbacks read from the model, which include absolute paths.
    shown: dict[str, Any] = {"_name_or_path": getattr(model.config, "_name_or_path", "")}
    if hasattr(model, "peft_config"):
        shown["peft_config"] = {name: config.to_dict() for name, config in model.peft_config.items()}
    return shown


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
