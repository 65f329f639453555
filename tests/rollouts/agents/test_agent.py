"""Tools are found and called as TRL's trainers do, and what cannot be collected is refused."""

import pytest

from erprm_trl.rollouts.agents import Agent


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


class Counter:
    """An environment with two tools, a property and a private method."""

    def __init__(self):
        self.count = 0

    def reset(self, **columns):
        self.count = 0

    def get_reward(self) -> float:
        return float(self.count)

    def increase(self, by: int) -> str:
        """
        Increases the count.

        Args:
            by: Amount.
        """
        self.count += by
        return str(self.count)

    def parts(self) -> list:
        """Returns the parts of a message."""
        return [{"type": "text", "text": "x"}]

    def _hidden(self):
        raise AssertionError("not a tool")

    @property
    def broken(self):
        raise AssertionError("not read")


def turn(*calls):
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def contents(messages):
    assert all(message["role"] == "tool" for message in messages)
    return [(message["name"], message["content"]) for message in messages]


def test_tools_are_functions_and_the_methods_of_an_environment():
    agent = Agent((add,), Counter)
    (environment,) = agent.environments([None])
    assert [tool.__name__ for tool in agent.tools_of(environment)] == ["add", "increase", "parts"]
    assert [schema["function"]["name"] for schema in agent.schemas(None)] == ["add", "increase", "parts"]
    assert agent.owns_reward and not Agent((add,)).owns_reward
    assert agent.settings == {
        "tools": [f"{__name__}:add"],
        "environment_factory": f"{__name__}:Counter",
        "max_tool_calling_iterations": None,
        "render_message": None,
    }


def test_calls_are_answered_in_order_and_errors_are_told_to_the_policy():
    agent = Agent((add,), Counter)
    (environment,) = agent.environments([None])
    calls = [("add", {"a": 2, "b": 3}), ("increase", {"by": 4}), ("increase", {"by": 5}), ("fly", {})]
    answers = contents(agent.answer(turn(*calls), environment))
    assert answers[:3] == [("add", "5"), ("increase", "4"), ("increase", "9")]
    assert answers[3] == ("fly", "{'error': 'Tool fly not found.'}")
    for arguments in ({"a": 1}, {"a": "x", "b": 1}, "a", None, {"c": 1}):
        ((_, content),) = contents(agent.answer(turn(("add", arguments)), environment))
        assert content.startswith("{'error': ")
    assert agent.answer({"role": "assistant", "content": "done"}, environment) == []
    with pytest.raises(ValueError, match="'parts': got the parts of a message.*Return a text"):
        agent.answer(turn(("parts", {})), environment)


def test_environments_are_made_once_and_used_again():
    agent = Agent(environment_factory={"a": Counter, "b": Counter})
    first = agent.environments(["a", "b", "a"])
    assert len(set(map(id, first))) == 3
    again = agent.environments(["a", "a", "b", "a"])
    assert again[:3] == [first[0], first[2], first[1]] and again[3] not in first
    assert agent.environment_name({"environment": "b"}, "question 0") == "b"
    with pytest.raises(ValueError, match=r"question 7: got environment='c', expected one of \['a', 'b'\].*columns="):
        agent.environment_name({"environment": "c"}, "question 7")


async def wait() -> str:
    """Waits."""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "neither tools nor an environment_factory"),
        ({"tools": (3,)}, TypeError, "tools: got 3 at index 0, expected functions"),
        ({"environment_factory": Counter()}, TypeError, "environment_factory: got .* Pass the class itself"),
        ({"environment_factory": object}, TypeError, "environment object without a method reset"),
        ({"tools": (wait,)}, ValueError, "asynchronous function 'wait', expected a plain function"),
        ({"tools": (add,), "max_tool_calling_iterations": -1}, ValueError, "max_tool_calling_iterations: got -1"),
    ],
)
def test_errors_name_what_cannot_be_collected(arguments, error, message):
    with pytest.raises(error, match=message):
        Agent(**arguments)
