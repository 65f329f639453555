"""Experiments on the embedded task: the whole chain, and policies before and after training."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .chain import DialChain, summarize
    from .policies import compare_policies

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "chain": ["DialChain", "summarize"],
        "policies": ["compare_policies"],
    },
)
