"""Processes one chunk of a collection: samples solutions or takes given ones, continues their prefixes and grades all
texts."""

import inspect
import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ..reasoning import answer_start
from ..steps import clean_steps, split_steps, splitting_advice
from .allocation import allocate
from .given_solutions import GivenSolution
from .grading.grader import STATED, Grader
from .overlap import Chunk, Grading, Requests, Sampling
from .progress import CollectionProgress
from .questions import Question
from .records import CollectionSettings, RolloutRow
from .sampling.base import Completion, Prompt, Sampler, derived_seed
from .shared_prefixes import SharedPrefixes


logger = logging.getLogger(__name__)

ROUNDS = 4  # number of rounds of adaptive collection; more rounds did not improve labels on the dial task


class _Solution(NamedTuple):
    """A solution: its row, the prompt of the policy without the solution, and the sampled tokens, empty if the
    solution is given."""

    row: RolloutRow
    prompt: Prompt
    token_ids: tuple[int, ...] = ()


class _Target(NamedTuple):
    """A prefix to continue: the row to which its rewards are added, its number of steps, and the prompt of the
    policy."""

    row: RolloutRow
    num_steps: int
    prompt: Prompt


class ChunkWork:
    """
    Samples and grades one chunk after the other. The rows of a chunk depend only on its questions, its index and the
    settings.

    Args:
        questions (`Sequence[Question]` or `Sequence[list[GivenSolution]]`):
            All questions of the collection. If solutions are given, the solutions of each question.
        sampler ([`Sampler`], *optional*):
            Sampler of solutions. `None` if solutions are given.
        completer ([`Sampler`], *optional*):
            Sampler of continuations, if it is not `sampler`.
        settings ([`CollectionSettings`]):
            Settings of the collection.
        progress ([`CollectionProgress`]):
            Progress bar.

    Attributes:
        num_rollouts (`int`): number of texts sampled so far.
        num_saved (`int`): number of continuations saved so far, compared with a fixed number per prefix.
    """

    def __init__(
        self,
        questions: Sequence[Question] | Sequence[list[GivenSolution]],
        sampler: Sampler | None,
        completer: Sampler | None,
        settings: CollectionSettings,
        progress: CollectionProgress,
    ):
        self.questions, self.sampler, self.settings = questions, sampler, settings
        self.completer = sampler if completer is None else completer
        self.progress = progress
        self._has_warned = False  # about solutions with a single step
        self.num_rollouts = self.num_saved = 0
        self._prompt_format = sampler.prompt_format if settings.continue_from == "tokens" else None
        in_rows = ("backend", "model", "temperature", "top_p", "top_k", "max_new_tokens")
        self.sampler_settings = {name: value for name, value in settings.sampler.items() if name in in_rows}

    def run_chunk(self, chunk: int, grader: Grader | None) -> Chunk:
        """Processes a chunk, and returns its rows in the order of its questions and solutions. A generator of the
        requests that this needs."""
        settings = self.settings
        first = chunk * settings.chunk_size
        questions = self.questions[first : first + settings.chunk_size]  # read once, because they may be on disk
        if settings.has_given_solutions:
            self.progress.begin_chunk(len(questions), sum(map(len, questions)), chunk)
            solutions = self._given_solutions(chunk, first, questions)
        else:
            self.progress.begin_chunk(len(questions), len(questions) * settings.num_solutions, chunk)
            solutions = yield from self._sampled_solutions(chunk, first, questions)
        rows = [solution.row for solution in solutions]
        if not self._has_warned and rows and max(len(row.steps) for row in rows) == 1:
            logger.warning(
                "splitter=%r: none of %d solutions has two steps, so %s. %s",
                settings.splitter,
                len(rows),
                "there are no labels for steps within a solution"
                if settings.num_continuations
                else "a reward model scores each of them as one step",
                splitting_advice([row.text for row in rows], settings.steps_of),
            )
            self._has_warned = True
        if grader is None:
            return rows
        if settings.num_continuations == 0:
            yield from self._grade(rows, grader)
            return rows
        targets = [target for solution in solutions for target in self._targets(solution)]
        self.progress.begin_continuations(len(targets), len(targets) * settings.num_continuations, chunk)
        continue_prefixes = self._continue_shared if settings.shares_continuations else self._continue_prefixes
        yield from continue_prefixes(chunk, rows, targets, grader)
        return rows

    def _grade(self, rows: list[RolloutRow], grader: Grader) -> Requests:
        """Writes rewards and final answers into the rows of solutions."""
        texts = [row.text for row in rows]
        if self.settings.grading != STATED:
            answers = [row.answer for row in rows]
            rewards, predictions = yield Grading(partial(grader.grade_and_extract, texts, answers))
        else:
            rewards = [float(row.correct) for row in rows]
            # The answers are not used.
            _, predictions = yield Grading(partial(grader.grade_and_extract, texts, ["0"] * len(rows)))
        for row, reward, prediction in zip(rows, rewards, predictions, strict=True):
            row.outcome_reward, row.prediction = reward, prediction

    def _sampled_solutions(self, chunk: int, first: int, questions: Sequence[Question]) -> Requests:
        settings = self.settings
        prompts = [Prompt(question.question, prompt=question.prompt) for question in questions]
        solutions = []
        samples_Q = yield from self._sample(self.sampler, prompts, settings.num_solutions, chunk, "solutions")
        for index, (question, prompt, samples) in enumerate(zip(questions, prompts, samples_Q, strict=True)):
            for solution_index, sample in enumerate(samples):
                self._check_token_ids(sample)
                steps = self._steps(sample.text)
                row = RolloutRow(
                    chunk=chunk,
                    question_index=first + index,
                    solution_index=solution_index,
                    question=question.question,
                    answer=question.answer,
                    steps=steps,
                    finished=sample.finished,
                    num_tokens=sample.num_tokens,
                    unusable=None if steps else "no steps",
                    sampler={**self.sampler_settings, "seed": derived_seed(settings.seed, chunk, "solutions")},
                    token_ids=list(sample.token_ids) if settings.store_token_ids else None,
                )
                solutions.append(_Solution(row, prompt, sample.token_ids))
        return solutions

    def _given_solutions(self, chunk: int, first: int, groups: Sequence[list[GivenSolution]]) -> list[_Solution]:
        solutions = []
        for question_index, group in enumerate(groups, start=first):
            for solution_index, solution in enumerate(group):
                self._has_warned |= solution.steps is not None  # another splitter would not change them
                steps = self._steps(solution.text) if solution.steps is None else list(solution.steps)
                unusable = None if all(clean_steps(steps, self.settings.splitter)) else "a step without content"
                row = RolloutRow(
                    chunk=chunk,
                    question_index=question_index,
                    solution_index=solution_index,
                    question=solution.question,
                    answer=solution.answer,
                    steps=steps,
                    unusable=unusable if steps else "no steps",
                    solution_id=solution.id,
                    correct=solution.correct,
                    metadata=None if solution.metadata is None else dict(solution.metadata),
                )
                solutions.append(_Solution(row, Prompt(solution.question)))
        return solutions

    def _check_token_ids(self, sample: Completion) -> None:
        if self.settings.store_token_ids and not sample.token_ids and (sample.text or not self.settings.stop):
            raise ValueError(
                "store_token_ids: got True with a sampler that returned no token ids, expected token ids. With vLLM's "
                "server, set extra_body={'return_token_ids': True}. Otherwise, set store_token_ids=False."
            )

    def _steps(self, text: str) -> list[str]:
        # If the chat template opens the thinking, a text without `</think>` consists of thinking only.
        has_answer = answer_start(text, self.settings.reasoning) is not None
        is_split = has_answer or self.settings.steps_of != "answer"
        return split_steps(text, self.settings.splitter, self.settings.steps_of) if is_split else []

    def _targets(self, solution: _Solution) -> list[_Target]:
        """The proper prefixes of a solution with labels. The bare question has 0 steps, and is a target of the first
        solution only."""
        row, prompt, token_ids = solution
        prefixes = [row.prefix(num_steps) for num_steps in range(1, len(row.steps))] if row.is_usable else []
        if not self.settings.continues_own_samples:
            # Most tokenizers write a space together with the word after it, so a policy rarely continues after one.
            prefixes = [prefix.rstrip(" ") for prefix in prefixes]
        ids_of_prefix = [None] * len(prefixes)
        if self._prompt_format is not None:
            ids_of_prefix = self._prompt_format.prefix_ids(prompt, token_ids, prefixes)
        bare_question = self.settings.include_question and row.solution_index == 0
        targets = [_Target(row, 0, prompt)] if bare_question else []
        for num_steps, (prefix, prefix_ids) in enumerate(zip(prefixes, ids_of_prefix, strict=True), start=1):
            targets.append(_Target(row, num_steps, prompt._replace(prefix=prefix, prefix_ids=prefix_ids)))
        return targets

    def _continue_prefixes(
        self, chunk: int, rows: list[RolloutRow], targets: list[_Target], grader: Grader
    ) -> Requests:
        """Continues each prefix equally often."""
        num_continuations = self.settings.num_continuations
        prompts = [target.prompt for target in targets]
        continuations = yield from self._sample(self.completer, prompts, num_continuations, chunk, "continuations")
        # The solutions are graded only now, because sampling need not wait for their rewards.
        yield from self._grade(rows, grader)
        texts = [
            prompt.prefix + continuation.text
            for prompt, continuations_K in zip(prompts, continuations, strict=True)
            for continuation in continuations_K
        ]
        answers = [target.row.answer for target in targets for _ in range(num_continuations)]
        rewards = iter((yield Grading(partial(grader.grade, texts, answers))))
        for row, num_steps, _ in targets:
            rewards_K = [next(rewards) for _ in range(num_continuations)]
            if num_steps == 0:
                row.question_rewards = rewards_K
            else:
                row.prefix_rewards.append(rewards_K)
        _share_question_rewards(rows)

    def _continue_shared(self, chunk: int, rows: list[RolloutRow], targets: list[_Target], grader: Grader) -> Requests:
        """Continues each distinct prefix, more often if its label is uncertain, and counts each text for all prefixes
        with which it begins."""
        yield from self._grade(rows, grader)
        shared = {row.question_index: SharedPrefixes(self.settings.reuse_continuations) for row in rows}
        prefix_of_target = [shared[row.question_index].add_prefix(prompt.prefix) for row, _, prompt in targets]
        # If several solutions begin with the same prefix, it is continued from the tokens of the first of them.
        prompt_of_prefix: dict[tuple[int, int], Prompt] = {}
        for target, prefix in zip(targets, prefix_of_target, strict=True):
            prompt_of_prefix.setdefault((target.row.question_index, prefix), target.prompt)
        for row in rows:
            row.prefix_generated = []
            if self.settings.continues_own_samples:  # solutions of another policy are no continuations of this one
                shared[row.question_index].add_text(row.text, row.outcome_reward)
        first_rows = {row.question_index: row for row in reversed(rows)}
        budget = self.settings.num_continuations * len(targets)
        spent = 0
        rounds = self._rounds()
        for round_index, purpose in enumerate(rounds):
            counts = self._counts(list(shared.values()), (budget - spent) // (len(rounds) - round_index))
            if not any(map(any, counts)):
                break
            spent += sum(map(sum, counts))
            jobs = [
                (question_index, prefix)
                for question_index, counts_of_question in zip(shared, counts, strict=True)
                for prefix, count in enumerate(counts_of_question)
                for _ in range(count)
            ]
            prompts = [prompt_of_prefix[job] for job in jobs]
            continuations = yield from self._sample(self.completer, prompts, 1, chunk, purpose)
            texts = [
                prompt.prefix + continuation.text
                for prompt, (continuation,) in zip(prompts, continuations, strict=True)
            ]
            answers = [first_rows[index].answer for index, _ in jobs]
            rewards = yield Grading(partial(grader.grade, texts, answers))
            for (index, prefix), text, reward in zip(jobs, texts, rewards, strict=True):
                shared[index].add_text(text, reward, start=prefix)
        self.num_saved += budget - spent
        _write_shared(targets, prefix_of_target, shared)
        _share_question_rewards(rows)

    def _rounds(self) -> list[str]:
        """Name of each round of sampling, from which its seed is derived."""
        if not self.settings.is_adaptive:
            return ["continuations"]
        return [f"continuations-{index}" for index in range(ROUNDS)]

    def _counts(self, shared: list[SharedPrefixes], budget: int) -> list[list[int]]:
        """Number of continuations to sample in this round, for each distinct prefix of each question."""
        if not self.settings.is_adaptive:
            return [[self.settings.num_continuations] * len(prefixes.texts) for prefixes in shared]
        return allocate(
            [prefixes.rewards for prefixes in shared],
            [prefixes.weights for prefixes in shared],
            [prefixes.reach() for prefixes in shared],
            budget,
            target_etas=self.settings.target_etas,
            tolerance=self.settings.tolerance,
        )

    def _sample(self, sampler: Sampler, prompts: list[Prompt], num_samples: int, chunk: int, purpose: str) -> Requests:
        if not prompts:
            return []
        options = {"until": self.settings.stop} if self.settings.stop else {}
        if "progress" in inspect.signature(sampler.sample).parameters:
            options["progress"] = self.progress.update
        seed = derived_seed(self.settings.seed, chunk, purpose)

        def sample() -> list[list[Completion]]:
            self.progress.begin_call(purpose.partition("-")[0], len(prompts) * num_samples, chunk)
            completions = sampler.sample(prompts, num_samples, seed, **options)
            self.progress.end_call()
            self.num_rollouts += len(prompts) * num_samples
            return completions

        return (yield Sampling(sample))


def _write_shared(targets: list[_Target], prefix_of_target: list[int], shared: dict[int, SharedPrefixes]) -> None:
    seen = set()
    for (row, num_steps, _), prefix in zip(targets, prefix_of_target, strict=True):
        prefixes = shared[row.question_index]
        rewards = prefixes.generated[prefix] + prefixes.inherited[prefix]
        # A prefix that several solutions share was sampled once. Its continuations are counted for the first of them.
        is_first = (row.question_index, prefix) not in seen
        seen.add((row.question_index, prefix))
        num_generated = len(prefixes.generated[prefix]) if is_first else 0
        if num_steps == 0:
            row.question_rewards, row.question_generated = rewards, num_generated
        else:
            row.prefix_rewards.append(rewards)
            row.prefix_generated.append(num_generated)


def _share_question_rewards(rows: list[RolloutRow]) -> None:
    rewards_Q = {row.question_index: row.question_rewards for row in rows if row.solution_index == 0}
    for row in rows:
        row.question_rewards = rewards_Q[row.question_index]
