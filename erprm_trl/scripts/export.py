"""Exports a reward model as a token classification model, which engines such as vLLM serve.

erprm export --reward_model outputs/dial/erprm --output_dir outputs/dial/erprm-token
vllm serve outputs/dial/erprm-token --runner pooling
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..io.redaction import without_login
from ..reward_model import scoring
from .outcome import print_outcome


@dataclass
class ExportArguments:
    """The reward model and the new folder."""

    reward_model: str = field(metadata={"help": "Folder or Hub id of the reward model or LoRA adapter."})
    output_dir: str = field(metadata={"help": "New folder for the token classification model."})
    prm_format: str | None = field(
        default=None, metadata={"help": "Preset of a public reward model, such as math-shepherd."}
    )
    dtype: str = field(default="auto", metadata={"help": "Dtype of the exported weights."})


def main(arguments: ExportArguments) -> Path:
    """Exports the model, and says how to serve it."""
    scoring.export_reward_model(
        arguments.reward_model, arguments.output_dir, prm_format=arguments.prm_format, dtype=arguments.dtype
    )
    print_outcome(
        f"{without_login(arguments.reward_model)} is exported as a token classification model.",
        f"Serve it: vllm serve {arguments.output_dir} --runner pooling",
    )
    return Path(arguments.output_dir)
