"""Scores steps without a reward model: a language model reads the solution and names its first wrong step."""

import logging
import math
from collections import Counter
from collections.abc import Sequence

from torch import nn

from ...reasoning import prompt_opens_thinking
from ...rollouts.sampling.base import Completion, Prompt, Sampler
from ..prm_format import PRMFormat
from .backend import SolutionTooLong
from .judge_prompt import FIRST_ERROR_PROMPT, NO_ERROR, STEP_PROMPT, check_prompt, fill_prompt, read_verdict
from .sampled_texts import BoundedCache, SampledTexts, check_at_least, text_hash


logger = logging.getLogger(__name__)


class JudgeScorer:
    r"""
    A [`ScoringBackend`] that asks a language model for the first wrong step of a solution.

    The model reads the question and the steps, numbered from 0, and ends its answer with `\boxed{2}` for step 2, or
    with `\boxed{-1}` if every step is right. The score of a step is the share of votes in which neither this step nor
    an earlier one is wrong. Thinking before `</think>` is not read.

    A vote without a clear verdict is unreadable. It is asked for again with another seed, up to `max_attempts` times.
    The score is the share among the readable votes. All unreadable votes are counted in `costs` and logged.

    With `verdict_tokens`, the model is asked about each step separately, and writes nothing. The score of a step is
    the probability of the first token among the two, as the next token after the prompt.

    The prompt contains text that a policy wrote. A policy that is trained on these scores can learn to write steps
    that mislead the judge.

    Args:
        sampler ([`~erprm_trl.rollouts.Sampler`]):
            Sampler of the judge. The prompt becomes a user message if the tokenizer has a chat template. The sampler's
            `system_prompt` is used, and its `prompt_template` and `examples` must not be set.
        prompt (`str`, *optional*):
            Prompt with `{question}` and `{steps}`. With `verdict_tokens`, the last step in `{steps}` is the one to
            judge, and `{good}` and `{bad}` are the two tokens.
        num_votes (`int`, *optional*, defaults to `1`):
            Number of votes per solution. Several votes need a temperature above 0.
        verdict_tokens (`tuple[str, str]`, *optional*):
            Tokens that say that a step is right and that it is wrong, such as `("yes", "no")`. Needs a sampler with
            the method `next_token_log_probs`, as the samplers of this package have.
        max_attempts (`int`, *optional*, defaults to `3`):
            Number of times that a vote is asked for until it is readable.
        unreadable_score (`float`, *optional*, defaults to `0.5`):
            Score of all steps of a solution without a readable vote. `None` raises an error instead.
        splitter (`str`, *optional*, defaults to `"newline"`), steps_of (`str`, *optional*, defaults to `"both"`):
            How raw texts are split into steps ([`~erprm_trl.rollouts.split_steps`]).
        aggregation (`str`, *optional*, defaults to `"min"`):
            How step scores become one score per solution.
        max_cached (`int`, *optional*, defaults to `100_000`):
            Number of solutions, or of prefixes with `verdict_tokens`, whose scores are kept.
        context_length (`int`, *optional*):
            Maximum length of the prompt and the answer, in tokens. Defaults to the sampler's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the votes. Scores depend on the seed, the question and the steps, but not on the batch.

    Raises:
        `ValueError`: for an invalid argument, a prompt without a placeholder, several votes at temperature 0, or a
            sampler that does not fit.

    Example:

    ```python
    >>> scorer = StepScorer.from_backend(JudgeScorer(sampler, num_votes=4))
    >>> scorer.score(["What is 2 + 3?"], [["2 + 3 = 6", "The answer is 6."]])
    [[0.25, 0.0]]
    ```
    """

    def __init__(
        self,
        sampler: Sampler,
        prompt: str | None = None,
        num_votes: int = 1,
        *,
        verdict_tokens: Sequence[str] | None = None,
        max_attempts: int = 3,
        unreadable_score: float | None = 0.5,
        splitter: str = "newline",
        steps_of: str = "both",
        aggregation: str = "min",
        max_cached: int = 100_000,
        context_length: int | None = None,
        seed: int = 0,
    ):
        check_at_least("num_votes", num_votes, 1)
        check_at_least("max_attempts", max_attempts, 1)
        check_at_least("max_cached", max_cached, 0)
        if unreadable_score is not None and not 0 <= unreadable_score <= 1:
            raise ValueError(f"unreadable_score: got {unreadable_score}, expected a number in [0, 1], or None.")
        self.prompt = default_prompt(verdict_tokens) if prompt is None else prompt
        check_prompt(self.prompt)
        self.prm_format = PRMFormat(splitter=splitter, aggregation=aggregation, steps_of=steps_of)
        self._texts = SampledTexts(sampler, seed, context_length=context_length)
        self.verdict_tokens = None if verdict_tokens is None else _checked_tokens(verdict_tokens, num_votes, sampler)
        if self._texts.is_greedy and num_votes > 1:
            raise ValueError(
                f"num_votes: got {num_votes} with temperature 0, expected a temperature above 0, because all votes "
                "would be equal. Set num_votes=1, or a temperature such as 0.7."
            )
        self.num_votes, self.unreadable_score = num_votes, unreadable_score
        self.max_attempts = 1 if self._texts.is_greedy else max_attempts
        self._system_prompt = _system_prompt(sampler)
        self._opens_thinking = self._prompt_opens_thinking()
        self._scores: BoundedCache = BoundedCache(max_cached)
        self._counts: Counter[str] = Counter(votes=0, unreadable_votes=0, unreadable_solutions=0)

    @property
    def sampler(self) -> Sampler:
        """Sampler of the judge."""
        return self._texts.sampler

    @property
    def model_name(self) -> str:
        """The judge with the settings of the scores, for manifests and caches. The prompt, the settings of the sampler
        and the others are a hash."""
        how = f"votes={self.num_votes}" if self.verdict_tokens is None else f"tokens={'/'.join(self.verdict_tokens)}"
        others = {"max_attempts": self.max_attempts, "unreadable_score": self.unreadable_score}
        digest = self._texts.digest(prompt=self.prompt, **others)
        return f"JudgeScorer({self._texts.model_name}, {how}, seed={self._texts.seed}, settings={digest})"

    @property
    def context_length(self) -> int | None:
        """Maximum length of the prompt and the answer in tokens, or `None` if it is not known."""
        return self._texts.context_length

    @property
    def weights(self) -> nn.Module | None:
        """`None`: scores are shares of votes, or probabilities that are checked."""
        return None

    @property
    def costs(self) -> dict[str, int]:
        """Numbers since the scorer was created: sampled `tokens`, answers that are `unfinished`, `votes` that were
        asked for, `unreadable_votes` among them, and `unreadable_solutions`, which have no readable vote."""
        costs = self._texts.costs
        return {"tokens": costs["tokens"], "unfinished": costs["unfinished"], **self._counts}

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores every step; see [`ScoringBackend.score`].

        Raises:
            [`SolutionTooLong`]: if the prompt leaves no room for an answer and `skip_too_long` is `False`.
            `ValueError`: if a solution has no readable vote and `unreadable_score` is `None`.
        """
        scores: dict[int, list[float]] = {}
        asked: list[int] = []
        for index, (question, solution) in enumerate(zip(questions, steps, strict=True)):
            reason = self._texts.excess(self._prompt(question, solution)) if solution else None
            if reason is not None and not skip_too_long:
                raise SolutionTooLong(index, reason)
            if reason is not None or not solution:
                scores[index] = []
            else:
                asked.append(index)
        solutions = [(questions[index], tuple(steps[index])) for index in asked]
        judged = self._probabilities(solutions) if self.verdict_tokens else self._shares(solutions)
        scores |= dict(zip(asked, judged, strict=True))
        return [list(scores[index]) for index in range(len(steps))]

    def _shares(self, solutions: list[tuple[str, tuple[str, ...]]]) -> list[list[float]]:
        """Scores from votes."""
        keys = [text_hash(question, *steps) for question, steps in solutions]
        scores = {key: self._scores[key] for key in keys if key in self._scores}
        todo = {key: solution for key, solution in zip(keys, solutions, strict=True) if key not in scores}
        for key, verdicts in self._verdicts(todo).items():
            num_steps = len(todo[key][1])
            if verdicts:
                ends = [num_steps if verdict == NO_ERROR else verdict for verdict in verdicts]
                shares = [sum(end > step for end in ends) / len(ends) for step in range(num_steps)]
                scores[key] = self._scores[key] = shares
        for key, solution in todo.items():  # after all others, whose scores are kept if this raises
            if key not in scores:
                scores[key] = self._unreadable(*solution)
        return [scores[key] for key in keys]

    def _verdicts(self, todo: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, list[int]]:
        """The readable verdicts on each solution. Unreadable votes are asked for again."""
        verdicts: dict[str, list[int]] = {key: [] for key in todo}
        unreadable: list[Completion] = []
        for attempt in range(self.max_attempts):
            missing = [key for key, readable in verdicts.items() for _ in range(self.num_votes - len(readable))]
            if not missing:
                break
            prompts = [self._prompt(*todo[key]) for key in missing]
            seen: Counter[str] = Counter()
            names = []
            for key in missing:
                names.append(("vote", key, attempt, seen[key]))
                seen[key] += 1
            for key, (answer,) in zip(missing, self._texts.draw(prompts, 1, names), strict=True):
                verdict = read_verdict(answer.text, len(todo[key][1]), self._opens_thinking or None)
                if verdict is None:
                    unreadable.append(answer)
                else:
                    verdicts[key].append(verdict)
            self._counts["votes"] += len(missing)
        self._counts["unreadable_votes"] += len(unreadable)
        if unreadable:
            logger.warning(
                f"JudgeScorer: {len(unreadable)} votes on {len(todo)} solutions had no clear verdict, "
                f"{sum(not answer.finished for answer in unreadable)} of which were cut off. Raise max_new_tokens if "
                "answers are cut off, or change the prompt. The level DEBUG logs the end of one of them."
            )
            # Answers quote solutions, which the logs of a scoring server must not contain.
            logger.debug(f"JudgeScorer: a vote without a clear verdict ends with {unreadable[0].text[-200:]!r}.")
        return verdicts

    def _unreadable(self, question: str, steps: Sequence[str]) -> list[float]:
        self._counts["unreadable_solutions"] += 1
        if self.unreadable_score is None:
            raise ValueError(
                f"JudgeScorer: got no readable verdict on a solution of {question[:120]!r} in {self.max_attempts} "
                "attempts, expected an answer that ends with a boxed number. Raise max_attempts or max_new_tokens, "
                "change the prompt, or set unreadable_score."
            )
        return [self.unreadable_score] * len(steps)

    def _probabilities(self, solutions: list[tuple[str, tuple[str, ...]]]) -> list[list[float]]:
        """Scores from the probabilities of the verdict tokens."""
        prefixes = {
            text_hash(question, *steps[:count]): (question, steps[:count])
            for question, steps in solutions
            for count in range(1, len(steps) + 1)
        }
        scores = {key: self._scores[key] for key in prefixes if key in self._scores}
        todo = [key for key in prefixes if key not in scores]
        prompts = [self._prompt(*prefixes[key]) for key in todo]
        log_probs = self.sampler.next_token_log_probs(prompts, self.verdict_tokens) if todo else []
        for key, (good, bad) in zip(todo, log_probs, strict=True):
            if not math.isfinite(good - bad):
                raise FloatingPointError(
                    f"JudgeScorer: got the log-probabilities {good} and {bad} of the verdict tokens "
                    f"{self.verdict_tokens}, expected finite numbers. Check the weights of {self._texts.model_name}."
                )
            # The smaller exponential, because the larger one may overflow.
            smaller = math.exp(-abs(good - bad))
            scores[key] = self._scores[key] = (1.0 if good >= bad else smaller) / (1.0 + smaller)
        return [
            [scores[text_hash(question, *steps[:count])] for count in range(1, len(steps) + 1)]
            for question, steps in solutions
        ]

    def _prompt(self, question: str, steps: Sequence[str]) -> Prompt:
        good, bad = self.verdict_tokens or ("", "")
        message = {"role": "user", "content": fill_prompt(self.prompt, question, steps, good, bad)}
        system = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        return Prompt(question, prompt=[*system, message])

    def _prompt_opens_thinking(self) -> bool:
        prompt_format = self._texts.prompt_format
        opens = prompt_format is not None and prompt_opens_thinking(prompt_format.render(self._prompt("", [""])))
        if opens and self.verdict_tokens:
            raise ValueError(
                "verdict_tokens: got a chat template that opens <think>, expected one after which the judge answers "
                "at once. Set chat_template_kwargs={'enable_thinking': False} of the sampler, or use votes."
            )
        return opens


def default_prompt(verdict_tokens: Sequence[str] | None) -> str:
    """The prompt that a [`JudgeScorer`] uses if none is set."""
    return FIRST_ERROR_PROMPT if verdict_tokens is None else STEP_PROMPT


def _checked_tokens(tokens: Sequence[str], num_votes: int, sampler: Sampler) -> tuple[str, str]:
    if isinstance(tokens, str) or len(tokens) != 2 or not all(isinstance(token, str) and token for token in tokens):
        raise ValueError(
            f"verdict_tokens: got {tokens!r}, expected two texts, for a right and for a wrong step. Pass e.g. "
            "('yes', 'no')."
        )
    if num_votes != 1:
        raise ValueError(
            f"num_votes: got {num_votes} with verdict_tokens, expected 1, because nothing is sampled. Leave one out."
        )
    if not hasattr(sampler, "next_token_log_probs"):
        raise ValueError(
            f"verdict_tokens: got a {type(sampler).__name__}, which does not compute the probabilities of tokens, "
            "expected a TransformersSampler, a VLLMSampler or an EndpointSampler. Use one of them, or leave "
            "verdict_tokens out to ask for votes."
        )
    return tokens[0], tokens[1]


def _system_prompt(sampler: Sampler) -> str | None:
    prompt_format = getattr(sampler, "prompt_format", None)
    if prompt_format is None:
        return None
    unused = {"examples": prompt_format.examples, "prompt_template": prompt_format.prompt_template != "{question}"}
    for name, is_set in unused.items():
        if is_set:
            raise ValueError(
                f"{name} of the judge's sampler: got a value, which the judge would not use, expected none. Put the "
                "text into the prompt of JudgeScorer."
            )
    return prompt_format.system_prompt
