"""Scores steps without a reward model: samples continuations of every prefix from a policy, and grades them."""

import copy
import inspect
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
from .trained_policy import OwnCompletion, TrainedPolicy


logger = logging.getLogger(__name__)

LAST_STEPS = ("reward", "continuations")
POLICY = "policy"  # in place of a sampler: the policy that a step trainer trains


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

    `MonteCarloScorer("policy")` continues with the policy that [`~erprm_trl.StepGRPOTrainer`] or
    [`~erprm_trl.StepPPOTrainer`] trains, with its current weights and its own tokens, by the trainer's generation
    engine. The trainer's dataset has the answers, and no rewards are kept between calls. Only these trainers can use
    it.

    Args:
        sampler ([`~erprm_trl.rollouts.Sampler`] or `"policy"`):
            Sampler of the policy that continues the prefixes, or `"policy"` for the policy that is being trained.
        grading (`str` or `Callable`, *optional*, defaults to `"math"`):
            How texts are graded, see [`~erprm_trl.rollouts.Grader`]. Rewards must be in [0, 1]. With `"policy"`, it
            defaults to the trainer's grading.
        num_continuations (`int`, *optional*, defaults to `8`):
            Number K of continuations per prefix.
        eta (`float`, *optional*, defaults to `0.0`):
            Inverse reward temperature. 0 gives the success rate. With the gradings `"math"` and `"exact"`,
            [`StepScorer`] can read the scores at another eta.
        answers (mapping, iterable of [`~erprm_trl.rollouts.Question`], `str` or `PathLike`):
            Reference answers: a mapping from question to answer, questions from
            [`~erprm_trl.rollouts.load_questions`], or the `source` argument of this function. Not with `"policy"`,
            and neither are `stop`, `separator`, `last_step`, `context_length`, `max_cached` and `seed`.
        answer_pattern (`str`, *optional*), reasoning (`bool`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
        stop (`str` or `Sequence[str]`, *optional*):
            Strings before which a continuation ends, for few-shot prompts.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How raw texts are split into steps ([`~erprm_trl.rollouts.split_steps`]).
        separator (`str`, *optional*):
            Text between two steps of a prefix. Defaults to a text that fits `splitter`, see
            [`~erprm_trl.rollouts.join_steps`].
        aggregation (`str`, *optional*):
            How step scores become one score per solution. Defaults to `"min"`, and with `"policy"` to `"last"`, which
            is the value of the longest prefix.
        last_step (`str`, *optional*, defaults to `"reward"`):
            Score of the last step: `"reward"` grades the solution, which must be complete. `"continuations"` continues
            it like every other prefix. Guided search uses the second for solutions that are not finished.
        max_continuations (`int`, *optional*):
            Maximum number of continuations per call. If a call needs more, it samples the same smaller number for each
            of its prefixes, logs a warning and counts the prefixes in `costs["reduced_prefixes"]`. If there would be
            no continuation per prefix, it raises an error. With `"policy"`, a call is a batch of generations on all
            processes.
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
        sampler: Sampler | str,
        grading: str | Callable[[str, str], float] | None = None,
        num_continuations: int = 8,
        eta: float = 0.0,
        *,
        answers: Mapping[str, str] | Iterable[Question] | str | PathLike | None = None,
        answer_pattern: str | None = None,
        reasoning: bool | None = None,
        stop: str | Sequence[str] | None = None,
        splitter: str = "newline",
        separator: str | None = None,
        aggregation: str | None = None,
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
        self.samples_policy = isinstance(sampler, str)
        if self.samples_policy:
            unused = {"answers": answers, "stop": stop, "separator": separator, "context_length": context_length}
            _check_policy(sampler, unused, last_step=last_step, max_cached=max_cached, seed=seed)
        elif answers is None:
            raise ValueError(
                "answers: got None, expected the reference answers of all questions. Pass a mapping from question to "
                "answer, or questions from load_questions."
            )
        aggregation = aggregation or ("last" if self.samples_policy else "min")
        method = "math" if grading is None else grading
        self.prm_format = PRMFormat(splitter=splitter, aggregation=aggregation, eta=eta_of_scores(method, eta))
        self.num_continuations, self.eta, self.last_step = num_continuations, eta, last_step
        self.splitter, self.separator, self.max_continuations = splitter, separator, max_continuations
        self._grader = None
        if grading is not None or not self.samples_policy:
            self._grader = Grader(method, answer_pattern, reasoning=reasoning)
        elif answer_pattern is not None or reasoning is not None:
            raise ValueError(
                "answer_pattern, reasoning: got a value without grading, expected grading, too, because the trainer's "
                "grading has its own. Set grading, or set these in the trainer's configuration."
            )
        self._questions = {} if answers is None else _questions(answers)
        known = sorted((question, known.answer) for question, known in self._questions.items())
        self._graded_by = {"answer_pattern": answer_pattern, "reasoning": reasoning, "answers": text_hash(*known)}
        self._texts = None
        if not self.samples_policy:
            self._texts = SampledTexts(sampler, seed, context_length=context_length, until=stop_strings(stop))
        self._rewards: BoundedCache = BoundedCache(max_cached)
        self._drawn: Counter[str] = Counter(texts=0, tokens=0, unfinished=0)  # of the policy that is trained
        self._counts: Counter[str] = Counter(prefixes=0, cached_prefixes=0, reduced_prefixes=0)

    @property
    def sampler(self) -> Sampler | str:
        """Sampler of the policy, or `"policy"`."""
        return POLICY if self._texts is None else self._texts.sampler

    @property
    def model_name(self) -> str:
        """The policy with the settings of the scores, for manifests and caches. The answers, the settings of the
        sampler and the others are a hash."""
        if self._texts is None:
            graded = "" if self._grader is None else f", grading={grading_name(self._grader.method)}"
            return f"MonteCarloScorer(policy, K={self.num_continuations}, eta={self.eta:g}{graded})"
        names = ("splitter", "separator", "last_step", "max_continuations")
        digest = self._texts.digest(**self._graded_by, **{name: getattr(self, name) for name in names})
        return (
            f"MonteCarloScorer({self._texts.model_name}, K={self.num_continuations}, eta={self.eta:g}, "
            f"grading={grading_name(self._grader.method)}, seed={self._texts.seed}, settings={digest})"
        )

    @property
    def context_length(self) -> int | None:
        """Maximum length of a prompt and its continuation in tokens, or `None` if it is not known."""
        return None if self._texts is None else self._texts.context_length

    @property
    def weights(self) -> nn.Module | None:
        """`None`: the scores are means of rewards, which are finite with any weights."""
        return None

    @property
    def costs(self) -> dict[str, int]:
        """Numbers since the scorer was created: sampled `continuations` and `tokens`, `unfinished` continuations,
        scored `prefixes`, `cached_prefixes` whose rewards were known, `reduced_prefixes` with fewer than
        `num_continuations`, and `grading_timeouts`."""
        costs = self._drawn if self._texts is None else self._texts.costs
        return {
            "continuations": costs["texts"],
            "tokens": costs["tokens"],
            "unfinished": costs["unfinished"],
            **self._counts,
            "grading_timeouts": 0 if self._grader is None else self._grader.num_timeouts,
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
        if self._texts is None:
            raise ValueError(
                "MonteCarloScorer: got no policy to sample from, expected to be in reward_funcs of StepGRPOTrainer or "
                "StepPPOTrainer, because the sampler is 'policy'. Pass a sampler, e.g. "
                "TransformersSampler.from_pretrained(...), to score anywhere else."
            )
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

    def score_completions(
        self, completions: Sequence[OwnCompletion | None], policy: TrainedPolicy
    ) -> list[list[float]]:
        """
        Scores every step of completions of the policy that is trained. All processes call it together.

        Args:
            completions (`Sequence[OwnCompletion]`):
                Completions of this process. `None` for a completion without steps or without an answer.
            policy ([`TrainedPolicy`]):
                The policy.

        Returns:
            `list[list[float]]`: the scores of each completion, empty for `None`.

        Raises:
            `ValueError`: as in [`~MonteCarloScorer.score`].
        """
        present = [completion for completion in completions if completion is not None]
        distinct = list(dict.fromkeys((prefix, each.answer) for each in present for prefix in each.prefixes))
        count = self._affordable(policy.total(len(distinct)))
        continued = policy.continue_prefixes([prefix for prefix, _ in distinct], count)
        samples = [completion for completions_K in continued for completion in completions_K]
        self._counts.update(prefixes=len(distinct), reduced_prefixes=len(distinct) * (count < self.num_continuations))
        self._drawn.update(
            texts=len(samples),
            tokens=sum(sample.num_tokens for sample in samples),
            unfinished=sum(not sample.finished for sample in samples),
        )
        grade = policy.grade if self._grader is None else self._grader.grade
        answers = [answer for _, answer in distinct for _ in range(count)]
        graded = self._grade([sample.text for sample in samples], answers, grade)
        rewards = torch.tensor(graded, dtype=torch.float64).reshape(len(distinct), count)
        values = dict(zip(distinct, soft_value(rewards, self.eta).tolist() if distinct else [], strict=True))
        last = iter(self._grade([each.text for each in present], [each.answer for each in present], grade))
        return [
            [] if each is None else [*(values[prefix, each.answer] for prefix in each.prefixes), next(last)]
            for each in completions
        ]

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
        if num_continuations < self.num_continuations:
            self._counts["reduced_prefixes"] += len(todo)
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
        if not self._counts["reduced_prefixes"]:  # the first time
            logger.warning(
                f"MonteCarloScorer: {num_prefixes} prefixes need {needed} continuations, and max_continuations is "
                f"{self.max_continuations}. Each gets {count} instead of {self.num_continuations}."
            )
        return count

    def _grade(self, texts: list[str], answers: list[str], grade: Callable | None = None) -> list[float]:
        rewards = (grade or self._grader.grade)(texts, answers) if texts else []
        for reward in rewards:
            if not 0 <= reward <= 1:
                name = "of the trainer" if self._grader is None else repr(grading_name(self._grader.method))
                raise ValueError(
                    f"grading {name}: got the reward {reward}, expected a number in "
                    "[0, 1]. Rescale the rewards of the grading function."
                )
        return [float(reward) for reward in rewards]


def _check_policy(sampler: str, unused: Mapping[str, Any], **defaults: Any) -> None:
    """Checks the arguments for the policy that is trained."""
    if sampler != POLICY:
        raise ValueError(
            f"sampler: got {sampler!r}, expected a sampler, or {POLICY!r} for the policy that a step trainer trains. "
            "Pass for example TransformersSampler.from_pretrained(path)."
        )
    usual = inspect.signature(MonteCarloScorer.__init__).parameters
    wrong = {name: value for name, value in unused.items() if value is not None}
    wrong |= {name: value for name, value in defaults.items() if value != usual[name].default}
    for name, value in wrong.items():
        raise ValueError(
            f"{name}: got {repr(value)[:60]} with the sampler {POLICY!r}, expected it only with a sampler, because "
            "the trainer has the answers and the settings of the generation. Do not set it."
        )


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
