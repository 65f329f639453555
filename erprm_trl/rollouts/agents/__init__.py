"""Collects conversations of policies that use tools, as TRL trains them: the policy's turns, the calls of tools, and
environments that are made again for each continuation."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .agent import Agent
    from .tool_loop import Conversation, ToolLoop
    from .work import ConversationWork

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"agent": ["Agent"], "tool_loop": ["Conversation", "ToolLoop"], "work": ["ConversationWork"]},
)
