"""RAFT: sample solutions, select those with the best scores, fine-tune the policy on them, and repeat."""

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
