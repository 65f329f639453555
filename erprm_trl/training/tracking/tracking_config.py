"""Configuration fields for tracking that all trainers share. Trackers receive the configuration in redacted form."""

from dataclasses import dataclass, field, fields
from typing import Any

from ...io.redaction import SECRET_NAME, redacted
from ...io.text_lists import check_texts


ARTIFACTS = ("config", "data", "checkpoint")


@dataclass
class TrackingConfig:
    """
    Mixin for configurations derived from [`~transformers.TrainingArguments`]. It comes before them in the bases.

    Parameters:
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            Whether to leave NaN and infinite values out of the logged losses.
        num_logged_solutions (`int`, *optional*, defaults to `8`):
            Number of solutions in the table `solutions`, which shows steps coloured by score. 0 logs no table.
        log_artifacts (`list[str]`, *optional*):
            Artifacts to log to wandb and trackio: `"config"`, `"data"` (the manifest of the data, not the data) and
            `"checkpoint"` (model, tokenizer and format of the last checkpoint, without the optimizer state).
    """

    # Off, because the filter of transformers would read each loss from the device again, and hide non-finite losses.
    # `StopOnNonFinite` stops training at such a loss.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether to leave NaN and infinite values out of the logged losses."}
    )
    num_logged_solutions: int = field(
        default=8,
        metadata={"help": "Number of solutions in the logged table of steps coloured by score. 0 logs no table."},
    )
    log_artifacts: list[str] | None = field(
        default=None,
        metadata={"help": "Artifacts to log to wandb and trackio: config, data, checkpoint.", "nargs": "*"},
    )

    def __post_init__(self):
        super().__post_init__()
        # Fields of the model that trackers show. TrainingTracker sets them.
        self._shown_of_model: dict[str, Any] = {}
        if self.num_logged_solutions < 0:
            raise ValueError(
                f"num_logged_solutions: got {self.num_logged_solutions}, expected 0 or more. Pass 0 to log no table."
            )
        if self.log_artifacts is not None:
            check_texts("log_artifacts", self.log_artifacts)
        unknown = sorted(set(self.log_artifacts or ()) - set(ARTIFACTS))
        if unknown:
            raise ValueError(
                f"log_artifacts: got {unknown}, expected names among {', '.join(ARTIFACTS)}. Correct the names."
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration in the form that trackers log, without secrets and absolute paths. It cannot be used to
        build another configuration."""
        # transformers masks every name that ends in `_token`, but e.g. `good_token` is not a secret.
        tokens = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name.endswith("_token") and not SECRET_NAME.search(entry.name)
        }
        return redacted({**super().to_dict(), **tokens, **self._shown_of_model})
