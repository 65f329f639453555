"""Scores steps without a reward model: samples continuations of every prefix from a policy, and grades them."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from ...functional.soft_values import soft_value
from ...rollouts.grading.grader import Grader, grading_name
from ...rollouts.grading.worker import METHODS
from ...rollouts.questions import Question, load_questions
from ...rollouts.sampling.base import Prompt, Sampler, stop_strings
from ...steps import join_steps
from ..prm_format import PRMFormat
from .backend import SolutionTooLong
from .sampled_texts import BoundedCache, SampledTexts, check_at_least, text_hash


logger = logging.getLogger(__name__)

LAST_STEPS = ("reward", "continuations")


class MonteCarloScorer:
    r"""
    A [`ScoringBackend`] that estimates the value of every prefix from continuations.

    The score of a step is \\( V_\eta \\) of the prefix that ends with this step: the soft value of the rewards of
    `num_continuations` continuations that the policy samples ([`~erprm_trl.functional.soft_value`]). The score of the
    last step is the reward of the solution. The standard deviation of a score at `eta=0` is at most
    \\( 1 / (2 \sqrt{K}) \\).

    The scorer needs the reference answer of every question. Use it to calibrate reward models and to credit the steps
    of a policy. Its best-of-N cannot be compared with the best-of-N of reward models, which do not know the answers.

    A prefix that several solutions share is continued once, and its rewards are kept for later calls. Scores depend on
    the seed, the question and the prefix, but not on the batch or the order. The exceptions are calls that exceed
    `max_continuations`, and rounding in the model.

    The prefix is written again from the cleaned steps, so white space between steps may differ from the original text.
    Delimiters of thinking are not written again.

    Args:
        sampler ([`~erprm_trl.rollouts.Sampler`]):
            Sampler of the policy that continues the prefixes.
        grading (`str` or `Callable`, *optional*, defaults to `"math"`):
            How texts are graded, see [`~erprm_trl.rollouts.Grader`]. Rewards must be in [0, 1].
        num_continuations (`int`, *optional*, defaults to `8`):
            Number K of continuations per prefix.
        eta (`float`, *optional*, defaults to `0.0`):
            Inverse reward temperature. 0 gives the success rate. With the gradings `"math"` and `"exact"`,
            [`StepScorer`] can read the scores at another eta.
        answers (mapping, iterable of [`~erprm_trl.rollouts.Question`], `str` or `PathLike`):
            Reference answers: a mapping from question to answer, questions from
            [`~erprm_trl.rollouts.load_questions`], or the `source` argument of this function.
        answer_pattern (`str`, *optional*), reasoning (`bool`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
        stop (`str` or `Sequence[str]`, *optional*):
            Strings before which a continuation ends, for few-shot prompts.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How raw texts are split into steps ([`~erprm_trl.rollouts.split_steps`]).
        separator (`str`, *optional*):
            Text between two steps of a prefix. Defaults to a text that fits `splitter`, see
            [`~erprm_trl.rollouts.join_steps`].
        aggregation (`str`, *optional*, defaults to `"min"`):
            How step scores become one score per solution.
        last_step (`str`, *optional*, defaults to `"reward"`):
            Score of the last step: `"reward"` grades the solution, which must be complete. `"continuations"` continues
            it like every other prefix. Guided search uses the second for solutions that are not finished.
        max_continuations (`int`, *optional*):
            Maximum number of continuations per call. If a call needs more, it samples the same smaller number for each
            of its prefixes, logs a warning and counts the prefixes in `costs["reduced_prefixes"]`. If there would be
            no continuation per prefix, it raises an error.
        max_cached (`int`, *optional*, defaults to `100_000`):
            Number of prefixes whose rewards are kept. Set 0 if the policy changes between calls.
        context_length (`int`, *optional*):
            Maximum length of a prompt and its continuation, in tokens. Defaults to the sampler's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the continuations.

    Raises:
        `ValueError`: for an invalid number, and for a question with two different answers.

    Example:

    ```python
    >>> scorer = StepScorer.from_backend(MonteCarloScorer(sampler, answers={"What is 2 + 3?": "5"}))
    >>> scorer.score(["What is 2 + 3?"], [["2 + 3 = 6", "The answer is 6."]])
    [[0.125, 0.0]]
    ```
    """

    def __init__(
        self,
        sampler: Sampler,
        grading: str | Callable[[str, str], float] = "math",
        num_continuations: int = 8,
        eta: float = 0.0,
        *,
        answers: Mapping[str, str] | Iterable[Question] | str | PathLike,
        answer_pattern: str | None = None,
        reasoning: bool | None = None,
        stop: str | Sequence[str] | None = None,
        splitter: str = "newline",
        separator: str | None = None,
        aggregation: str = "min",
        last_step: str = "reward",
        max_continuations: int | None = None,
        max_cached: int = 100_000,
        context_length: int | None = None,
        seed: int = 0,
    ):
        check_at_least("num_continuations", num_continuations, 1)
        check_at_least("max_continuations", 1 if max_continuations is None else max_continuations, 1)
        check_at_least("max_cached", max_cached, 0)
        if last_step not in LAST_STEPS:
            raise ValueError(f"last_step: got {last_step!r}, expected one of {', '.join(LAST_STEPS)}. Choose one.")
        soft_value(torch.zeros(1), eta)  # raises its error for NaN
        self.prm_format = PRMFormat(splitter=splitter, aggregation=aggregation, eta=eta_of_scores(grading, eta))
        self.num_continuations, self.eta, self.last_step = num_continuations, eta, last_step
        self.splitter, self.separator, self.max_continuations = splitter, separator, max_continuations
        self._questions = _questions(answers)
        self._grader = Grader(grading, answer_pattern, reasoning=reasoning)
        known = sorted((question, known.answer) for question, known in self._questions.items())
        self._graded_by = {"answer_pattern": answer_pattern, "reasoning": reasoning, "answers": text_hash(*known)}
        self._texts = SampledTexts(sampler, seed, context_length=context_length, until=stop_strings(stop))
        self._rewards: BoundedCache = BoundedCache(max_cached)
        self._counts: Counter[str] = Counter(prefixes=0, cached_prefixes=0, reduced_prefixes=0)

    @property
    def sampler(self) -> Sampler:
        """Sampler of the policy."""
        return self._texts.sampler

    @property
    def model_name(self) -> str:
        """The policy with the settings of the scores, for manifests and caches. The answers, the settings of the
        sampler and the others are a hash."""
        names = ("splitter", "separator", "last_step", "max_continuations")
        digest = self._texts.digest(**self._graded_by, **{name: getattr(self, name) for name in names})
        return (
            f"MonteCarloScorer({self._texts.model_name}, K={self.num_continuations}, eta={self.eta:g}, "
            f"grading={grading_name(self._grader.method)}, seed={self._texts.seed}, settings={digest})"
        )

    @property
    def context_length(self) -> int | None:
        """Maximum length of a prompt and its continuation in tokens, or `None` if it is not known."""
        return self._texts.context_length

    @property
    def weights(self) -> nn.Module | None:
        """`None`: the scores are means of rewards, which are finite with any weights."""
        return None

    @property
    def costs(self) -> dict[str, int]:
        """Numbers since the scorer was created: sampled `continuations` and `tokens`, `unfinished` continuations,
        scored `prefixes`, `cached_prefixes` whose rewards were known, `reduced_prefixes` with fewer than
        `num_continuations`, and `grading_timeouts`."""
        costs = self._texts.costs
        return {
            "continuations": costs["texts"],
            "tokens": costs["tokens"],
            "unfinished": costs["unfinished"],
            **self._counts,
            "grading_timeouts": self._grader.num_timeouts,
        }

    def for_unfinished(self) -> "MonteCarloScorer":
        """This scorer with `last_step="continuations"`. Both share the kept rewards and the costs."""
        scorer = copy.copy(self)
        scorer.last_step = "continuations"
        return scorer

    def clear_cache(self) -> None:
        """Forgets the kept rewards, after the policy has changed."""
        self._rewards.clear()

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores every step; see [`ScoringBackend.score`].

        Raises:
            [`SolutionTooLong`]: if a prefix leaves no room for a continuation and `skip_too_long` is `False`.
            `ValueError`: if a question has no answer, if the call exceeds `max_continuations` with one continuation
                per prefix, or if a reward is outside [0, 1].
        """
        asked = [self._question(question) for question in questions]
        prompts_of = [self._prompts(*solution) for solution in zip(asked, steps, strict=True)]
        for index, prompts in enumerate(prompts_of):
            reason = self._texts.excess(prompts[-1]) if prompts else None
            if reason is not None and not skip_too_long:
                raise SolutionTooLong(index, reason)
            if reason is not None:
                prompts_of[index] = None
        rewards_of = self._rewards_of([prompt for prompts in prompts_of for prompt in prompts or ()])
        values = {key: soft_value(rewards, self.eta).item() for key, rewards in rewards_of.items()}
        scores = [[values[_key(prompt)] for prompt in prompts or ()] for prompts in prompts_of]
        if self.last_step == "reward":
            graded = [index for index, prompts in enumerate(prompts_of) if prompts is not None and steps[index]]
            # Without a separator at the end, which graders could read as a part of the answer.
            texts = [join_steps(steps[index], self.splitter, self.separator, closed=False) for index in graded]
            for index, reward in zip(graded, self._grade(texts, [asked[i].answer for i in graded]), strict=True):
                scores[index].append(reward)
        return scores

    def _question(self, text: str) -> Question:
        question = self._questions.get(text.strip())
        if question is None:
            raise ValueError(
                f"MonteCarloScorer: got the question {text[:120]!r} without a reference answer, expected one of the "
                f"{len(self._questions)} questions in answers. Add it to answers."
            )
        return question

    def _prompts(self, question: Question, steps: Sequence[str]) -> list[Prompt]:
        """The prefixes to continue, from the shortest to the longest."""
        most = len(steps) - 1 if self.last_step == "reward" else len(steps)
        return [
            Prompt(question.question, self._join(steps[:count]), prompt=question.prompt)
            for count in range(1, most + 1)
        ]

    def _join(self, steps: Sequence[str]) -> str:
        return join_steps(steps, self.splitter, self.separator)

    def _rewards_of(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """Rewards of the continuations of each distinct prefix."""
        distinct = {_key(prompt): prompt for prompt in prompts}
        rewards = {key: self._rewards[key] for key in distinct if key in self._rewards}
        todo = {key: prompt for key, prompt in distinct.items() if key not in rewards}
        self._counts.update(prefixes=len(distinct), cached_prefixes=len(rewards))
        num_continuations = self._affordable(len(todo))
        keys = [("continuations", prompt.question, prompt.prefix) for prompt in todo.values()]
        completions = self._texts.draw(list(todo.values()), num_continuations, keys)
        texts = [
            prompt.prefix + completion.text
            for prompt, samples in zip(todo.values(), completions, strict=True)
            for completion in samples
        ]
        answers = [self._questions[prompt.question.strip()].answer for prompt in todo.values()]
        graded = self._grade(texts, [answer for answer in answers for _ in range(num_continuations)])
        for row, key in enumerate(todo):
            start = row * num_continuations
            rewards[key] = torch.tensor(graded[start : start + num_continuations], dtype=torch.float64)
            if num_continuations == self.num_continuations:
                self._rewards[key] = rewards[key]
        return rewards

    def _affordable(self, num_prefixes: int) -> int:
        """Number of continuations per prefix within the budget of a call."""
        needed = num_prefixes * self.num_continuations
        if self.max_continuations is None or needed <= self.max_continuations:
            return self.num_continuations
        count = self.max_continuations // num_prefixes
        if count == 0:
            raise ValueError(
                f"max_continuations: got {self.max_continuations} for a call with {num_prefixes} prefixes, expected "
                "at least one continuation per prefix. Raise it, or score fewer solutions per call."
            )
        self._counts["reduced_prefixes"] += num_prefixes
        logger.warning(
            f"MonteCarloScorer: {num_prefixes} prefixes need {needed} continuations, and max_continuations is "
            f"{self.max_continuations}. Each gets {count} instead of {self.num_continuations}."
        )
        return count

    def _grade(self, texts: list[str], answers: list[str]) -> list[float]:
        rewards = self._grader.grade(texts, answers) if texts else []
        for reward in rewards:
            if not 0 <= reward <= 1:
                raise ValueError(
                    f"grading {grading_name(self._grader.method)!r}: got the reward {reward}, expected a number in "
                    "[0, 1]. Rescale the rewards of the grading function."
                )
        return [float(reward) for reward in rewards]


def eta_of_scores(grading: str | Callable[[str, str], float], eta: float) -> float | None:
    """The eta at which scores can be read, `None` for a grading function, whose rewards may be other than 0 and 1."""
    return eta if grading in METHODS else None


def _key(prompt: Prompt) -> str:
    return text_hash(prompt.question, prompt.prefix)


def _questions(answers: Any) -> dict[str, Question]:
    if isinstance(answers, (str, PathLike)):
        answers = load_questions(answers)
    elif isinstance(answers, Mapping):
        answers = load_questions([{"question": question, "answer": answer} for question, answer in answers.items()])
    questions: dict[str, Question] = {}
    for question in answers:
        if question.answer is None:
            raise ValueError(
                f"answers: got the question {question.question[:120]!r} without an answer, expected a reference "
                "answer. Drop the question, or load it with an answer column."
            )
        known = questions.setdefault(question.question.strip(), question)
        if known.answer != question.answer:
            raise ValueError(
                f"answers: got the answers {known.answer!r} and {question.answer!r} for the question "
                f"{question.question[:120]!r}, expected one answer per question. Drop one of the rows."
            )
    return questions
