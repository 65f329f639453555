"""Processes one chunk of a collection of conversations: samples conversations, continues each after its turns, and
grades all of them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...conversations import observed_question
from ..grading.grader import ENVIRONMENT, Grader
from ..overlap import Chunk, Grading, Requests, Sampling
from ..progress import CollectionProgress
from ..questions import Question
from ..records import CollectionSettings, RolloutRow
from ..sampling.base import Sampler, derived_seed
from .agent import Agent
from .tool_loop import Conversation, ToolLoop


class ConversationWork:
    """
    Samples and grades one chunk after the other. The rows of a chunk depend only on its questions, its index and the
    settings. A step of a row is a turn of the policy.

    Args:
        questions (`Sequence[Question]`):
            All questions of the collection.
        sampler ([`Sampler`]):
            The policy.
        settings ([`CollectionSettings`]):
            Settings of the collection.
        progress ([`CollectionProgress`]):
            Progress bar.
        agent ([`Agent`]):
            The tools.

    Attributes:
        num_rollouts (`int`): number of conversations sampled so far.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        sampler: Sampler,
        settings: CollectionSettings,
        progress: CollectionProgress,
        agent: Agent,
    ):
        self.questions, self.settings, self.progress, self.agent = questions, settings, progress, agent
        self.loop = ToolLoop(agent, sampler)
        self.num_rollouts = self.num_saved = 0
        in_rows = ("backend", "model", "temperature", "top_p", "top_k", "max_new_tokens")
        self.sampler_settings = {name: value for name, value in settings.sampler.items() if name in in_rows}

    def run_chunk(self, chunk: int, grader: Grader | None) -> Chunk:
        """Processes a chunk, and returns its rows in the order of its questions and conversations. A generator of the
        requests that this needs."""
        settings = self.settings
        first = chunk * settings.chunk_size
        questions = self.questions[first : first + settings.chunk_size]
        self.progress.begin_chunk(len(questions), len(questions) * settings.num_solutions, chunk)
        asked = [(first + index, question) for index, question in enumerate(questions)]
        repeated = [pair for pair in asked for _ in range(settings.num_solutions)]
        conversations = self.loop.begin(
            [question for _, question in repeated], [f"question {index}" for index, _ in repeated]
        )
        rewards = yield from self._run(conversations, chunk, "solutions")
        rows = [
            self._row(chunk, index, place % settings.num_solutions, conversation)
            for place, ((index, _), conversation) in enumerate(zip(repeated, conversations, strict=True))
        ]
        if grader is None:
            return rows
        targets, continued, rewards_of_continued = [], [], None
        if settings.num_continuations > 0:
            targets = self._targets(rows, conversations)
            self.progress.begin_continuations(len(targets), len(targets) * settings.num_continuations, chunk)
            continued = self.loop.replay(
                [
                    (conversation, num_turns)
                    for _, conversation, num_turns in targets
                    for _ in range(settings.num_continuations)
                ]
            )
            rewards_of_continued = yield from self._run(continued, chunk, "continuations")
        rewards, predictions = yield from self._grade(conversations, rewards, grader)
        for row, reward, prediction in zip(rows, rewards, predictions, strict=True):
            row.outcome_reward, row.prediction = reward, prediction
        if settings.num_continuations > 0:
            rewards, _ = yield from self._grade(continued, rewards_of_continued, grader)
            self._write_rewards(rows, targets, rewards)
        return rows

    def _row(self, chunk: int, question_index: int, solution_index: int, conversation: Conversation) -> RolloutRow:
        settings, question = self.settings, conversation.question
        steps = self.loop.steps(conversation, settings.steps_of)
        asked = question.question
        if conversation.environment is not None:
            asked = observed_question(asked, conversation.prompt.prompt)
        return RolloutRow(
            chunk=chunk,
            question_index=question_index,
            solution_index=solution_index,
            question=asked,
            answer=question.answer,
            steps=[f"{step}\n" for step in steps[:-1]] + steps[-1:],
            finished=conversation.finished,
            num_tokens=conversation.num_tokens,
            unusable=None if all(steps) else "a turn without content",
            sampler={**self.sampler_settings, "seed": derived_seed(settings.seed, chunk, "solutions")},
            messages=conversation.messages,
        )

    def _targets(
        self, rows: list[RolloutRow], conversations: list[Conversation]
    ) -> list[tuple[RolloutRow, Conversation, int]]:
        """The prefixes to continue: the row, its conversation, and the number of turns."""
        targets = []
        for row, conversation in zip(rows, conversations, strict=True):
            with_question = self.settings.include_question and row.solution_index == 0
            least = 0 if with_question else 1
            most = len(row.steps) if row.is_usable else 1
            targets += [(row, conversation, num_turns) for num_turns in range(least, most)]
        return targets

    def _write_rewards(
        self, rows: list[RolloutRow], targets: list[tuple[RolloutRow, Conversation, int]], rewards: list[float]
    ) -> None:
        num_continuations = self.settings.num_continuations
        for place, (row, _, num_turns) in enumerate(targets):
            rewards_K = rewards[place * num_continuations : (place + 1) * num_continuations]
            if num_turns == 0:
                row.question_rewards = rewards_K
            else:
                row.prefix_rewards.append(rewards_K)
        question_rewards = {row.question_index: row.question_rewards for row in rows if row.solution_index == 0}
        for row in rows:
            row.question_rewards = question_rewards[row.question_index]

    def _run(self, conversations: list[Conversation], chunk: int, purpose: str) -> Requests:
        """Samples conversations. Returns the rewards of their environments, or `None` if texts are graded."""
        if not conversations:
            return []
        self.num_rollouts += len(conversations)

        def run() -> list[float] | None:
            self.progress.begin_call(purpose, len(conversations), chunk)
            self.loop.run(conversations, derived_seed(self.settings.seed, chunk, purpose), self.progress.update)
            self.progress.end_call()
            # Only this thread calls environments.
            return list(map(_reward_of, conversations)) if self.settings.grading == ENVIRONMENT else None

        return (yield Sampling(run))

    def _grade(self, conversations: list[Conversation], rewards: list[float] | None, grader: Grader) -> Requests:
        """Rewards and final answers of conversations. `rewards` are the rewards of environments, if
        any."""
        texts = [conversation.text for conversation in conversations]
        if rewards is None:
            answers = [conversation.question.answer for conversation in conversations]
            return (yield Grading(partial(grader.grade_and_extract, texts, answers)))
        # The answers are not used.
        _, predictions = yield Grading(partial(grader.grade_and_extract, texts, ["0"] * len(texts)))
        return rewards, predictions


def _reward_of(conversation: Conversation) -> float:
    reward: Any = conversation.environment.get_reward()
    if not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise ValueError(
            f"{conversation.name}: got the reward {reward!r} from {type(conversation.environment).__name__}."
            "get_reward, expected a finite number. Return a number, for example 0.0 for a failed conversation."
        )
    return float(reward)
