"""The dial as an environment for agents: a tool makes one move, and the policy calls it once for each move of the
question.

An agent writes a call as `7 + 15`, or as `7 + 15 = 2` if it computes the result itself. Its tokenizer has a chat
template that writes calls in this form, and a response template with which transformers parses them.
"""

from typing import Any

from ..conversations import is_turn, message_text
from .task import MOVES, POSITIONS, SEPARATOR, DialQuestion, turn
from .tokenizer import build_tokenizer


ERROR = "error"  # result of a call that is no move
USER, ASSISTANT, TOOL = "<user>", "<assistant>", "<tool>"
TOOL_WORDS = (USER, ASSISTANT, TOOL, ERROR)
# A call of another tool is written with the names of the tool and of its arguments. An agent does not use this form.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<' + message.role + '> ' + (message.content or '') + ' ' -}}
{%- for call in message.tool_calls or [] -%}
{%- set named = call.function.arguments -%}
{%- if call.function.name == 'turn' and named is mapping -%}
{{- [named.position, named.operator, named.amount] | join(' ') + ' ' -}}
{%- if named.result is defined -%}{{- '= ' + named.result | string + ' ' -}}{%- endif -%}
{%- else -%}
{{- call.function.name + ' ' -}}
{%- for name, value in named.items() -%}{{- name + ' ' + value | string + ' ' -}}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if message.role == 'assistant' -%}{{- '</s> ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant> ' -}}{%- endif -%}
"""
_CALL = r"(?P<position>\d+)\s+(?P<operator>[-+*])\s+(?P<amount>\d+)"
_RESULT = r"\s+=\s+(?P<result>\d+)"
_ARGUMENTS = {"position": "{position}", "operator": "{operator}", "amount": "{amount}"}


class DialEnvironment:
    """
    The dial of a question, for `environment_factory` of TRL's trainers and of [`collect_rollouts`].

    The tool makes any move, also a move that the question does not ask for, so that a mistake shows only in the
    reward. Each call moves the dial to the result of the call.

    Attributes:
        position (`int`): where the dial is now.
    """

    def __init__(self):
        self.position, self._answer = 0, None

    def reset(self, question: str, **columns: Any) -> None:
        """
        Sets the dial to the first position of a question.

        Args:
            question (`str`):
                Text of the question.
            columns:
                Other columns of the dataset, which are not used.
        """
        asked = DialQuestion.parse(question)
        self.position, self._answer = asked.start, asked.answer

    def turn(self, position: int, operator: str, amount: int) -> str:
        """
        Makes one move of the dial.

        Args:
            position: Position of the dial before the move, from 0 to 19.
            operator: How the dial moves: + to the right, - to the left, * for times.
            amount: Amount of the move, from 1 to 19.

        Returns:
            Position of the dial after the move, or "error" if there is no such move.
        """
        try:  # transformers before 5.15 passes texts
            position, amount = int(position), int(amount)
        except (TypeError, ValueError):
            return ERROR
        if not (0 <= position < POSITIONS and 1 <= amount < POSITIONS and operator in MOVES.values()):
            return ERROR
        self.position = turn(position, operator, amount)
        return str(self.position)

    def get_reward(self) -> float:
        """1.0 if the dial is where the question asks for, else 0.0."""
        return float(self.position == self._answer)


class DialByHand(DialEnvironment):
    """
    The dial of a question without a calculator, for `environment_factory`. The agent computes the result of each move
    itself, and the tool moves the dial to this result. A wrong result is a wrong move, which shows only in the reward.

    The calls are equations of the dial task, which its shipped model can judge, see [`render_by_hand`].
    """

    def turn(self, position: int, operator: str, amount: int, result: int) -> str:
        """
        Moves the dial.

        Args:
            position: Position of the dial before the move, from 0 to 19.
            operator: How the dial moves: + to the right, - to the left, * for times.
            amount: Amount of the move, from 1 to 19.
            result: Position of the dial after the move, from 0 to 19.

        Returns:
            Position of the dial after the move, or "error" if there is no such move.
        """
        before = self.position
        if super().turn(position, operator, amount) == ERROR or str(result) not in map(str, range(POSITIONS)):
            self.position = before
            return ERROR
        self.position = int(result)
        return str(self.position)


def render_message(message: dict[str, Any]) -> str:
    """
    The text of a message as a reward model of the dial task reads it, in the words of the shipped model: `7 + 15` or
    `7 + 15 = 2` for a call, `= 2` for its result. For `render_message` of [`collect_rollouts`] and
    [`StepRewardFunction`].

    The separator of dial's solutions is left out, because no turn may contain the separator of its reward model.
    """
    content = message_text(message).replace(SEPARATOR, "")
    if not is_turn(message):
        return f"= {content}"
    words = []
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        words += [str(arguments.get(name)) for name in ("position", "operator", "amount")]
        words += ["=", str(arguments["result"])] if "result" in arguments else []
    return " ".join([content, *words]).strip()


def render_by_hand(message: dict[str, Any]) -> str:
    """The text of a message with [`DialByHand`], like [`render_message`]. Results of the tool are left out, because
    each of them repeats the result in the call."""
    return render_message(message) if is_turn(message) else ""


def build_agent_tokenizer(*, by_hand: bool = False):
    """
    Builds the tokenizer of an agent: the shipped tokenizer with [`TOOL_WORDS`] after its words, and the templates of
    tool calls.

    Args:
        by_hand (`bool`, *optional*, defaults to `False`):
            Whether calls have a result, for [`DialByHand`].
    """
    tokenizer = build_tokenizer(TOOL_WORDS)
    tokenizer.chat_template = CHAT_TEMPLATE
    arguments = {**_ARGUMENTS, "result": "{result}"} if by_hand else _ARGUMENTS
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": ASSISTANT,
        "fields": {
            "tool_calls": {
                "open_pattern": _CALL + _RESULT * by_hand,
                "close_pattern": r"\s*</s>",
                "repeats": True,
                "content": "text",
                "transform": {"type": "function", "function": {"name": "turn", "arguments": arguments}},
            },
            "content": {"close_pattern": r"\s*</s>", "content": "text"},
        },
    }
    return tokenizer
