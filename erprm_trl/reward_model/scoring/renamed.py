"""`RemoteStepScorer` and `ShardedStepScorer`, the former names of scorers on a server and on a ZeRO-3 model.

They are kept for this release. New code calls `StepScorer.from_backend` with a [`RemoteBackend`] or a
[`ShardedBackend`].
"""

from typing import Any

from accelerate import Accelerator

from ..prm_format import PRMFormat
from .remote import RemoteBackend
from .scorer import StepScorer
from .sharded import ShardedBackend


def RemoteStepScorer(url: str, **options: Any) -> StepScorer:
    """Returns a [`StepScorer`] over a [`RemoteBackend`] with these options."""
    return StepScorer.from_backend(RemoteBackend(url, **options))


def ShardedStepScorer(model, tokenizer, prm_format: PRMFormat, accelerator: Accelerator, **options: Any) -> StepScorer:
    """Returns a [`StepScorer`] over a [`ShardedBackend`] with these options."""
    return StepScorer.from_backend(ShardedBackend(model, tokenizer, prm_format, accelerator, **options))
