"""The tools of an agent: functions, and the methods of an environment. Finds them, as TRL's trainers do, and calls
them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..grading.grader import grading_name


NOT_TOOLS = ("reset", "get_reward")
Message = dict[str, Any]


@dataclass(frozen=True)
class Agent:
    """
    The tools that a policy can call in a conversation, and the form in which a reward model reads it.

    Args:
        tools (`tuple[Callable, ...]`, *optional*):
            Functions that the policy can call, as for `tools` of [`~trl.GRPOTrainer`].
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes environments, as for [`~trl.GRPOTrainer`]. With a dictionary, the column `environment` of a question
            selects one of them.
        max_tool_calling_iterations (`int`, *optional*):
            Maximum number of turns whose tool calls are answered. By default, only the length of a conversation is
            limited.
        render_message (`Callable`, *optional*):
            Text of a message as a reward model reads it. Defaults to [`~erprm_trl.rollouts.render_message`].

    Raises:
        `TypeError`: if there is neither a tool nor an environment, if one of them cannot be called, or if an
            environment has no `reset`.
        `ValueError`: for an asynchronous tool, or a limit below 0.
    """

    tools: tuple[Callable, ...] = ()
    environment_factory: "Callable[[], Any] | Mapping[str, Callable[[], Any]] | None" = None
    max_tool_calling_iterations: int | None = None
    render_message: Callable[[Message], str] | None = None
    _schemas: dict[str | None, list[dict[str, Any]]] = field(default_factory=dict, init=False)
    _pools: dict[str | None, list[Any]] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for place, tool in enumerate(self.tools):
            if not callable(tool):
                raise TypeError(f"tools: got {tool!r} at index {place}, expected functions. Pass functions.")
        limit = self.max_tool_calling_iterations
        if limit is not None and limit < 0:
            raise ValueError(f"max_tool_calling_iterations: got {limit}, expected at least 0, or None. Leave it out.")
        if not self.tools and not self.factories:
            raise TypeError("Agent: got neither tools nor an environment_factory, expected one of them. Pass one.")
        for name, factory in self.factories.items():
            if not callable(factory):
                raise TypeError(
                    f"environment_factory: got {factory!r}, expected a class or function without arguments that makes "
                    "an environment. Pass the class itself."
                )
            environment = factory()
            if not callable(getattr(environment, "reset", None)):
                raise TypeError(
                    f"environment_factory: got an environment {type(environment).__name__} without a method reset, "
                    "expected one. Add reset(**columns), which begins a conversation."
                )
            self._check_synchronous(self.tools_of(environment))
            self._schemas[name] = self._schemas_of(self.tools_of(environment))
            self._pools[name] = [environment]
        if not self.factories:
            self._check_synchronous(self.tools)
            self._schemas[None] = self._schemas_of(self.tools)

    @property
    def factories(self) -> Mapping[str | None, Callable[[], Any]]:
        """The factories by the name of the environment, `None` for a single environment."""
        if isinstance(self.environment_factory, Mapping):
            return self.environment_factory
        return {} if self.environment_factory is None else {None: self.environment_factory}

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine a conversation, as JSON values."""
        factories = self.environment_factory
        if isinstance(factories, Mapping):
            factories = {name: grading_name(factory) for name, factory in factories.items()}
        return {
            "tools": [grading_name(tool) for tool in self.tools],
            "environment_factory": factories if isinstance(factories, dict) else grading_name(factories),
            "max_tool_calling_iterations": self.max_tool_calling_iterations,
            "render_message": grading_name(self.render_message),
        }

    @property
    def owns_reward(self) -> bool:
        """Whether every environment has a method `get_reward`."""
        made = [pool[0] for pool in self._pools.values()]
        return bool(made) and all(callable(getattr(environment, "get_reward", None)) for environment in made)

    def environments(self, names: Sequence[str | None]) -> list[Any]:
        """
        One environment per conversation. As in TRL's trainers, environments are made once and then used again, after
        `reset`, by the conversations of later calls.

        Args:
            names (`Sequence[str | None]`):
                Names of the environments.
        """
        if not self.factories:
            return [None] * len(names)
        unused = {name: iter(list(pool)) for name, pool in self._pools.items()}
        environments = []
        for name in names:
            environment = next(unused[name], None)
            if environment is None:
                environment = self.factories[name]()
                self._pools[name].append(environment)
            environments.append(environment)
        return environments

    def environment_name(self, columns: Mapping[str, Any], subject: str) -> str | None:
        """
        The name of a question's environment.

        Raises:
            `ValueError`: if the column `environment` names none of several environments.
        """
        if not isinstance(self.environment_factory, Mapping):
            return None
        name = columns.get("environment")
        if name not in self.factories:
            raise ValueError(
                f"{subject}: got environment={name!r}, expected one of {sorted(self.factories)}. Load the column with "
                'load_questions(..., columns=["environment"]), or add the environment.'
            )
        return name

    def tools_of(self, environment: Any) -> list[Callable]:
        """The functions that the policy can call in a conversation with an environment."""
        names = [] if environment is None else [
            name
            for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
            if name not in NOT_TOOLS and not name.startswith("_")
        ]  # fmt: skip
        return [*self.tools, *(getattr(environment, name) for name in names)]

    def schemas(self, name: str | None) -> list[dict[str, Any]]:
        """The JSON schemas of the tools of an environment, which the chat template shows."""
        return self._schemas[name]

    def answer(self, turn: Message, environment: Any) -> list[Message]:
        """
        Calls the tools of a turn, in order.

        A call that fails, or of a tool that does not exist, is answered with the error. The policy reads it.

        Args:
            turn (`dict`):
                An assistant message with `tool_calls`.
            environment:
                The environment, `None` if the agent has only functions.

        Returns:
            `list[dict]`: one message of the role `"tool"` per call.

        Raises:
            `ValueError`: if a tool returns parts of a message instead of text.
        """
        tools = {tool.__name__: tool for tool in self.tools_of(environment)}
        return [_answer(call, tools) for call in turn.get("tool_calls") or []]

    @staticmethod
    def _schemas_of(tools: Sequence[Callable]) -> list[dict[str, Any]]:
        from transformers.utils import get_json_schema

        return [get_json_schema(tool) for tool in tools]

    @staticmethod
    def _check_synchronous(tools: Sequence[Callable]) -> None:
        for tool in tools:
            if inspect.iscoroutinefunction(tool):
                raise ValueError(
                    f"tools: got the asynchronous function {tool.__name__!r}, expected a plain function, because "
                    "conversations are collected without an event loop. Call it with asyncio.run in a plain function."
                )


def _answer(call: dict[str, Any], tools: Mapping[str, Callable]) -> Message:
    function = call.get("function", call)
    name = function.get("name")
    try:
        if name not in tools:
            raise ValueError(f"Tool {name} not found.")
        result = tools[name](**function.get("arguments") or {})
    except Exception as error:  # arguments come from the policy, which reads the error
        result = {"error": str(error)}
    if isinstance(result, list) and any(isinstance(part, dict) and "type" in part for part in result):
        raise ValueError(
            f"Tool {name!r}: got the parts of a message, such as images, expected a text. Return a text, because "
            "conversations are collected with language models only."
        )
    return {"role": "tool", "name": name, "content": str(result)}
