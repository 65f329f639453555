"""RAFT: sample, keep the solutions that the reward model scores best, fine-tune on them, repeat."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .raft_config import RAFTConfig
    from .raft_trainer import RAFTTrainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "raft_config": ["RAFTConfig"],
        "raft_trainer": ["RAFTTrainer"],
    },
)
