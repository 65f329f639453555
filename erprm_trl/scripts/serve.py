"""Serves the step scores of a reward model over HTTP, for policies that are trained elsewhere.

ERPRM_SCORER_TOKEN=... erprm serve --recipe dial
erprm grpo --config ... --reward_model http://host:8100

SIGTERM or Ctrl-C ends the server after it has answered the requests that it has accepted.
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import erprm_trl

from ..io.paths import local_path
from .scoring import ETA, SCORING_BACKEND, TRAINED_ETA


logger = logging.getLogger(__name__)


@dataclass
class ServeArguments:
    """The reward model and the server."""

    reward_model: str = field(metadata={"help": "Folder or Hub id of the reward model, or a scorer file."})
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on. Use 0.0.0.0 for other machines, and set a token."},
    )
    port: int = field(default=8100, metadata={"help": "Port to listen on. 0 takes a free port, which the log names."})
    eta: float | None = field(default=None, metadata=ETA)
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})
    dtype: str = field(default="auto", metadata={"help": "Dtype of the model's weights."})
    device_map: str | None = field(default=None, metadata={"help": "auto places the model on several GPUs."})
    max_body_bytes: int = field(default=8 * 2**20, metadata={"help": "Maximum request body, in bytes."})
    max_solutions: int = field(default=1024, metadata={"help": "Maximum number of solutions per request."})
    max_steps: int | None = field(
        default=None,
        metadata={"help": "Maximum number of steps per solution. Defaults to the model's context length."},
    )
    max_waiting: int = field(
        default=64, metadata={"help": "Maximum number of accepted requests. Other clients are asked to try again."}
    )
    max_batch: int = field(default=1024, metadata={"help": "Maximum number of solutions scored in one call."})
    token_env: str = field(
        default="ERPRM_SCORER_TOKEN", metadata={"help": "Name of the environment variable with the token."}
    )
    token_file: str | None = field(
        default=None, metadata={"help": "File with the token, instead of the environment variable."}
    )

    def token(self) -> str | None:
        """The bearer token that clients have to send."""
        if self.token_file is not None:
            return Path(local_path(self.token_file)).read_text(encoding="utf-8").strip()
        return os.environ.get(self.token_env, "").strip() or None


def main(arguments: ServeArguments) -> None:
    """Loads the model and serves it until a signal ends the process."""
    import uvicorn

    from erprm_trl.reward_model.scoring.server import UVICORN, scoring_app

    token = arguments.token()
    if token is None and arguments.host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(
            "No token is set: everyone who reaches %s can use the server. Set $%s.",
            arguments.host,
            arguments.token_env,
        )
    scorer = erprm_trl.StepScorer.from_pretrained(
        arguments.reward_model,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        device_map=arguments.device_map,
        eta=arguments.eta,
        trained_eta=arguments.trained_eta,
        backend=arguments.scoring_backend,
    )
    limits = ("max_body_bytes", "max_solutions", "max_steps", "max_waiting", "max_batch")
    app = scoring_app(scorer, token=token, **{name: getattr(arguments, name) for name in limits})
    uvicorn.run(app, host=arguments.host, port=arguments.port, **UVICORN)
