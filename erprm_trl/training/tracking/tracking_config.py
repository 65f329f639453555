"""The fields of every trainer's configuration that say what a tracker is given, and the configuration as it is
shown."""

from dataclasses import dataclass, field, fields
from typing import Any

from ...io.redaction import SECRET_NAME, redacted
from ...io.text_lists import check_texts


ARTIFACTS = ("config", "data", "checkpoint")


@dataclass
class TrackingConfig:
    """
    Mixin for configurations derived from [`~transformers.TrainingArguments`], before them in the bases.

    Parameters:
        num_logged_solutions (`int`, *optional*, defaults to `8`):
            Solutions in the table `solutions`, their steps coloured by score; 0 for none.
        log_artifacts (`list[str]`, *optional*):
            What is logged as an artifact to wandb and trackio: `"config"`, `"data"` (the manifest, not the data) and
            `"checkpoint"` (the last one's model, tokenizer and format, without the optimizer's state).
    """

    # `StopOnNonFinite` ends a training whose loss is none; transformers would look at each batch again, and hide it.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN and inf out of logged losses."})
    num_logged_solutions: int = field(
        default=8, metadata={"help": "Solutions in the table with steps coloured by score; 0 for none."}
    )
    log_artifacts: list[str] | None = field(
        default=None, metadata={"help": "Logged as artifacts: config, data, checkpoint.", "nargs": "*"}
    )

    def __post_init__(self):
        super().__post_init__()
        # What trackers show of the model; TrainingTracker sets it.
        self._shown_of_model: dict[str, Any] = {}
        if self.num_logged_solutions < 0:
            raise ValueError(f"num_logged_solutions: got {self.num_logged_solutions}, expected 0 or more.")
        if self.log_artifacts is not None:
            check_texts("log_artifacts", self.log_artifacts)
        unknown = sorted(set(self.log_artifacts or ()) - set(ARTIFACTS))
        if unknown:
            raise ValueError(f"log_artifacts: got {unknown}, expected some of {', '.join(ARTIFACTS)}.")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as trackers log it: without secrets and absolute paths. Not to build another one from."""
        # transformers masks every name that ends in `_token`; a separator is no secret.
        tokens = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name.endswith("_token") and not SECRET_NAME.search(entry.name)
        }
        return redacted({**super().to_dict(), **tokens, **self._shown_of_model})
