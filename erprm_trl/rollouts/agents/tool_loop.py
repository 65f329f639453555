"""Conversations of a policy with tools: the policy writes a turn, its tool calls are answered, and so on.

Tokens are appended to tokens, and no turn is encoded again. A conversation therefore has the same tokens as in the
training of [`~trl.GRPOTrainer`].
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ..._trl import is_chat_template_prefix_preserving, parse_response
from ...conversations import conversation_steps, is_turn, message_text
from ...reasoning import prompt_opens_thinking
from ..questions import Question
from ..sampling.base import Completion, Prompt, Sampler, derived_seed
from .agent import Agent, Message


logger = logging.getLogger(__name__)


@dataclass
class Conversation:
    """
    A conversation about a question. `T` is its number of turns.

    Args:
        question ([`Question`]):
            The question.
        name (`str`):
            Name of the question in error messages.
        prompt ([`Prompt`]):
            Messages before the first turn, and the tools.
        prompt_ids (`list[int]`):
            Tokens of the prompt.
        environment:
            The environment, `None` if the agent has only functions.
        messages (`list[dict]`):
            Turns and results of tools.
        token_ids (`list[int]`):
            Tokens after the prompt.
        starts (`list[int]`):
            Index of the first token of each turn, length T.
        num_tokens (`int`):
            Number of tokens that the policy sampled.
        is_open (`bool`):
            Whether the policy continues.
        finished (`bool`):
            Whether the conversation ended with an end token, and not at a limit.
    """

    question: Question
    name: str
    prompt: Prompt
    prompt_ids: list[int]
    environment: Any
    messages: list[Message] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_tokens: int = 0
    is_open: bool = True
    finished: bool = False

    @property
    def text(self) -> str:
        """The text of the last turn, which is graded. Empty if the last message is the result of a tool."""
        return message_text(self.messages[-1]) if self.messages and is_turn(self.messages[-1]) else ""

    @property
    def turns(self) -> list[int]:
        """Index of each turn in the messages."""
        return [index for index, message in enumerate(self.messages) if is_turn(message)]


class ToolLoop:
    """
    Samples the turns of conversations, and answers their tool calls.

    Args:
        agent ([`Agent`]):
            The tools.
        sampler ([`Sampler`]):
            The policy. It needs a chat template that shows tool calls, and returns token ids. Its tokenizer gets TRL's
            training template if its own template changes earlier turns.

    Raises:
        `ValueError`: if the sampler has no such chat template.
    """

    def __init__(self, agent: Agent, sampler: Sampler):
        self.agent, self.sampler = agent, sampler
        self.prompt_format = getattr(sampler, "prompt_format", None)
        if self.prompt_format is None or not self.prompt_format.use_chat_template:
            raise ValueError(
                f"sampler: got {type(sampler).__name__} without a chat template, expected one that shows tool calls. "
                "Set tokenizer.chat_template, and leave use_chat_template unset."
            )
        self.tokenizer = self.prompt_format.tokenizer
        _prepare_templates(self.tokenizer)
        self.max_tokens = sampler.settings.get("max_new_tokens")
        self.context_length = getattr(sampler, "context_length", None)
        self._suffix_ids = lru_cache(maxsize=4096)(self._encode_results)

    def begin(self, questions: Sequence[Question], names: Sequence[str]) -> list[Conversation]:
        """Makes one conversation per question, whose environment is reset. `names` are for error messages."""
        columns = [question.columns or {} for question in questions]
        selected = [self.agent.environment_name(*pair) for pair in zip(columns, names, strict=True)]
        conversations = []
        for question, name, environment_name, environment in zip(
            questions, names, selected, self.agent.environments(selected), strict=True
        ):
            prompt = self._prompt(question, name, environment, environment_name)
            conversations.append(Conversation(question, name, prompt, self.prompt_format.encode(prompt), environment))
        return conversations

    def replay(self, prefixes: Sequence[tuple[Conversation, int]]) -> list[Conversation]:
        """
        Makes the beginning of a conversation again, with an environment of its own.

        The environment is reset, and the tool calls of the first turns are made again. Their results must be equal
        to the recorded results.

        Args:
            prefixes (`Sequence[tuple[Conversation, int]]`):
                Recorded conversations, each with the number of turns to make again, fewer than its turns.

        Returns:
            `list[Conversation]`: open conversations.

        Raises:
            `ValueError`: if an environment gives other results. The message names the question and the turn.
        """
        replays = self.begin([recorded.question for recorded, _ in prefixes], [old.name for old, _ in prefixes])
        for replay, (recorded, num_turns) in zip(replays, prefixes, strict=True):
            if replay.prompt != recorded.prompt:
                got, expected = (message_text(each.prompt.prompt[-1]) for each in (replay, recorded))
                raise _other_result(recorded, "reset", got, expected)
            turns = recorded.turns
            for number, (start, end) in enumerate(pairwise(turns[: num_turns + 1]), start=1):
                results = self.agent.answer(recorded.messages[start], replay.environment)
                expected = recorded.messages[start + 1 : end]
                if results != expected:
                    raise _other_result(recorded, f"turn {number}", *_first_difference(results, expected))
            replay.messages = list(recorded.messages[: turns[num_turns]])
            replay.starts = recorded.starts[:num_turns]
            replay.token_ids = recorded.token_ids[: recorded.starts[num_turns]]
        return replays

    def run(self, conversations: Sequence[Conversation], seed: int, update: Callable[[int, int], None]) -> None:
        """
        Continues open conversations to their ends.

        Args:
            conversations (`Sequence[Conversation]`):
                The conversations. They are changed.
            seed (`int`):
                Seed of the samples.
            update (`Callable[[int, int], None]`):
                Function to call after each turn, with the numbers of conversations that have ended and of tokens.

        Raises:
            `ValueError`: if the sampler returns no token ids.
        """
        active, iteration = [each for each in conversations if each.is_open], 0
        while active:
            prompts = [each.prompt._replace(prefix_ids=tuple(each.token_ids)) for each in active]
            samples = self.sampler.sample(prompts, 1, derived_seed(seed, iteration))
            for conversation, (completion,) in zip(active, samples, strict=True):
                self._add_turn(conversation, completion)
                if conversation.is_open:
                    self._add_results(conversation)
            still = [each for each in active if each.is_open]
            update(len(active) - len(still), sum(completion.num_tokens for (completion,) in samples))
            active, iteration = still, iteration + 1

    def steps(self, conversation: Conversation, steps_of: str = "both") -> list[str]:
        """The text of each turn as a reward model reads it."""
        is_thinking = prompt_opens_thinking(self.prompt_format.render(conversation.prompt))
        options = {"steps_of": steps_of, "is_thinking": is_thinking, "render": self.agent.render_message}
        return conversation_steps(conversation.messages, **options)

    def _prompt(self, question: Question, name: str, environment: Any, environment_name: str | None) -> Prompt:
        if isinstance(question.prompt, str):
            raise ValueError(
                f"{name}: got the text {question.prompt[:80]!r} as prompt, expected messages, because tools need a "
                "chat template. Pass messages, or leave the prompt out."
            )
        messages = self.prompt_format.messages(Prompt(question.question, prompt=question.prompt))
        if environment is not None:
            row = {"prompt": messages, "question": question.question, **(question.columns or {})}
            if question.answer is not None:
                row["answer"] = question.answer
            if isinstance(self.agent.environment_factory, dict):
                del row["environment"]
            observation = environment.reset(**row)
            if observation is not None and not isinstance(observation, str):
                raise ValueError(
                    f"{name}: got the observation {str(observation)[:80]!r} ({type(observation).__name__}) from "
                    "reset, expected a text or None. Return a text."
                )
            if observation:
                messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + observation}]
        return Prompt(question.question, prompt=messages, tools=self.agent.schemas(environment_name))

    def _add_turn(self, conversation: Conversation, completion: Completion) -> None:
        if not completion.token_ids:
            raise ValueError(
                "sampler: got a turn without token ids, expected token ids, because conversations are continued from "
                "them. With vLLM's server, set extra_body={'return_token_ids': True}."
            )
        room = None if self.max_tokens is None else self.max_tokens - len(conversation.token_ids)
        ids = list(completion.token_ids[:room])
        conversation.num_tokens += len(ids)
        conversation.finished = completion.finished and len(ids) == len(completion.token_ids)
        conversation.is_open = False
        if not ids:  # the results of tools used up all tokens
            return
        prefix = conversation.prompt_ids + conversation.token_ids
        message = parse_response(self.tokenizer, ids, prefix=prefix, tools=conversation.prompt.tools)
        conversation.starts.append(len(conversation.token_ids))
        conversation.token_ids += ids
        conversation.messages.append(message)
        conversation.is_open = bool(message.get("tool_calls"))

    def _add_results(self, conversation: Conversation) -> None:
        limit = self.agent.max_tool_calling_iterations
        if limit is not None and len(conversation.starts) > limit:
            conversation.is_open = conversation.finished = False
            return
        results = self.agent.answer(conversation.messages[-1], conversation.environment)
        ids = self._suffix_ids(tuple((result["name"], result["content"]) for result in results))
        length = len(conversation.token_ids) + len(ids)
        total = length + len(conversation.prompt_ids)
        if (self.max_tokens is not None and length > self.max_tokens) or (
            self.context_length is not None and total >= self.context_length
        ):
            conversation.is_open = conversation.finished = False
            return
        conversation.messages += results
        conversation.token_ids += ids

    def _encode_results(self, results: tuple[tuple[str, str], ...]) -> list[int]:
        """The tokens between a turn that calls tools and the next turn."""
        call = {"type": "function", "function": {"name": results[0][0], "arguments": {}}}
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        after = [*before, *({"role": "tool", "name": name, "content": content} for name, content in results)]
        settings = {"tokenize": True, "return_dict": False, **self.prompt_format.chat_template_kwargs}
        known = self.tokenizer.apply_chat_template(before, **settings)
        ids = self.tokenizer.apply_chat_template(after, add_generation_prompt=True, **settings)
        eos = self.tokenizer.eos_token_id
        if eos in known:  # the turn ends with this token, and templates write white space after it
            known = known[: len(known) - known[::-1].index(eos)]
        return ids[len(known) :]


def _prepare_templates(tokenizer) -> None:
    """Sets the templates of tool calls as TRL's trainers do: the response template of a known model, and its training
    template if the chat template writes a turn differently once another message follows."""
    from trl import add_response_schema, get_training_chat_template, supports_tool_calling

    if not supports_tool_calling(tokenizer):
        raise ValueError(
            "sampler: got a chat template that does not show tool calls, expected one that writes the calls of a turn "
            "and their results. Set tokenizer.chat_template to one that does."
        )
    if not getattr(tokenizer, "response_template", None) and not getattr(tokenizer, "response_schema", None):
        add_response_schema(tokenizer)  # raises for an unknown template
    if is_chat_template_prefix_preserving(tokenizer):
        return
    try:
        tokenizer.chat_template = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ValueError(
            "sampler: got a chat template that writes a turn differently once another message follows, expected one "
            "that only appends. Set tokenizer.chat_template to one that does, and use it in training, too."
        ) from error
    logger.info("The sampler uses TRL's training chat template, as TRL's trainers do.")


def _first_difference(got: list[Message], expected: list[Message]) -> tuple[str, str]:
    pairs = zip(got, expected, strict=False)
    first = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if first is None:
        return f"{len(got)} results", f"{len(expected)} results"
    return first[0]["content"], first[1]["content"]


def _other_result(recorded: Conversation, place: str, got: str, expected: str) -> ValueError:
    return ValueError(
        f"{recorded.name}, {place}: got the result {got[:200]!r} when its conversation was replayed, expected "
        f"{expected[:200]!r} as before. Labels need an environment that gives the same results to the same calls "
        "after reset. Make it deterministic, for example with a generator that reset seeds from the question."
    )
