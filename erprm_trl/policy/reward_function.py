"""A TRL reward function from step scores: `GRPOTrainer(reward_funcs=[StepRewardFunction(...)])`.

It returns one reward per completion, as TRL expects. [`StepRewardFunction.score_batch`] returns all step scores.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from threading import Lock
from typing import Any

from accelerate.utils import gather_object

from ..conversations import observed_question, question_text
from ..functional.aggregation import AGGREGATIONS
from ..io.paths import local_path
from ..io.text_lists import refuse_text
from ..reasoning import STEPS_OF
from ..reward_model.scoring.backend import ScoringBackend
from ..reward_model.scoring.eta import format_at_eta
from ..reward_model.scoring.loading import load_format
from ..reward_model.scoring.monte_carlo import MonteCarloScorer
from ..reward_model.scoring.scorer import StepScorer, solution_scores
from ..reward_model.scoring.scorer_file import is_scorer_file, samples_policy
from ..reward_model.scoring.sharded import check_sharding
from ..training.nonfinite import not_finite
from .completions import NO_COLUMNS, completion_steps, opens_thinking
from .scored_batch import (
    Handoff,
    ScoredBatch,
    ScoredCompletion,
    SingleStepWarning,
    first_not_finite,
    mean_score,
    rounded_scores,
    step_metrics,
)
from .turns import has_turns, num_own_tokens, turn_steps


NAME, QUESTION_COLUMN, TURNS = "step_reward", "question", "turns"
BATCH_LIMITS = {"batch_size": sys.maxsize, "max_batch_tokens": 8192}


class StepRewardFunction:
    """
    A reward function for TRL's trainers that scores completions with a process reward model. The reward is the
    aggregate of the completion's step scores.

    Example:

    ```python
    >>> from trl import GRPOTrainer
    >>> from erprm_trl import StepRewardFunction

    >>> trainer = GRPOTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B-Instruct",
    ...     reward_funcs=[StepRewardFunction("outputs/my-erprm"), accuracy_reward],
    ...     train_dataset=dataset,
    ... )
    ```

    Completions that cannot be scored get `unscorable_reward`. These are:

    - completions without steps,
    - completions longer than the reward model's context,
    - completions with an empty assistant turn, and
    - completions with a step that has no token of its own, if the policy's tokenizer is known.

    For completions with `<think>...</think>`, `steps_of` in the reward model's format selects the part that is scored.
    For policies with tools or an environment, a step is an assistant turn. Its text is the results of the tools before
    it, its content and its tool calls, see [`~erprm_trl.rollouts.conversation_steps`].

    TRL's trainers treat a reward of `None` as follows:

    | trainer | effect if every reward function returns `None` for a completion |
    |---|---|
    | `GRPOTrainer`, `RLOOTrainer`, `GMPOTrainer`, `AsyncGRPOTrainer` | The group ignores it, and its advantage is 0. |
    | `OnlineDPOTrainer`, `SDPOTrainer` | Its reward is 0. |
    | `A2POTrainer` | A `TypeError` is raised. Set a number. |
    | [`StepGRPOTrainer`], [`StepPPOTrainer`] | It has no step rewards. A number is not allowed. |

    These metrics are logged with TRL's `log_metric`: `steps/per_answer`, `steps/tokens_per_step`, `steps/mean_score`,
    `steps/repeated_share` (steps that repeat an earlier step of the same completion), `steps/unscorable_share` and, if
    the policy's tokenizer is known, `steps/unfinished_share`. `step_scores` is logged with `log_extra`. If `name` is
    set, it is a prefix of these names, as in `my_prm/steps/per_answer`, except in the step trainers.

    Args:
        scorer ([`StepScorer`], [`~erprm_trl.reward_model.ScoringBackend`], `str` or `Path`):
            The reward model: a scorer or backend, a folder or Hub id (it is loaded at the first call, on the device of
            the process), or the address of a scoring server such as `"http://host:8100"`.
        aggregation (`str`, *optional*):
            How step scores become a reward: `"min"`, `"last"`, `"product"` or `"mean"`. Defaults to the aggregation of
            the reward model's format.
        question_column (`str`, *optional*, defaults to `"question"`):
            Dataset column with the bare question. If there is no column `"question"`, the prompt is used: the text, or
            the last user message of a conversation. If there is an environment, the question is read from this message
            from the bare question on, because the environment's `reset` may append text to it. Any other column is
            used as it is.
        steps_of (`str`, *optional*):
            Kind of steps. With `"turns"`, a step is an assistant turn. With `"both"`, `"thinking"` or `"answer"`, it
            is a part of the last message's text, see `steps_of` of [`PRMFormat`]. By default, a step is an assistant
            turn if the trainer has an environment, if the completion has several messages, or if it calls a tool, and
            otherwise a part of the text. The step trainers also use turns for every completion if they have tools, or
            if a `rollout_func` returns an `env_mask`. In another trainer with tools, set `"turns"`, so that a
            completion without a tool call is one step, too.
        render_message (`Callable`, *optional*):
            Function that returns the text of a message of a conversation, as the reward model was trained on it.
            Defaults to [`~erprm_trl.rollouts.render_message`].
        unscorable_reward (`float`, *optional*):
            Reward of completions that cannot be scored. Defaults to `None`, see the table above.
        eta (`float`, *optional*):
            Eta at which the scores are read, see [`StepScorer`]. By default, scores are used as the model gives them.
            If the reward model's format does not record the eta of its labels, set `scorer_kwargs={"trained_eta": 0}`.
        name (`str`, *optional*, defaults to `"step_reward"`):
            Name in TRL's metrics, as in `rewards/step_reward/mean`. Two reward functions of one trainer need different
            names.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. The step trainers set it.
        eos_token_ids (`list[int]`, *optional*):
            Token ids that end a completion. Defaults to the tokenizer's.
        scorer_kwargs (`dict[str, Any]`, *optional*):
            Arguments of [`StepScorer.from_pretrained`], if `scorer` is a path or id. By default, a batch has at most
            8,192 tokens and any number of completions.

    Raises:
        `FileNotFoundError`: if a path or id is not a reward model.
        `ValueError`: for an unknown aggregation or `steps_of`, an `unscorable_reward` that is not finite, or an `eta`
            at which the scores cannot be read.
    """

    def __init__(
        self,
        scorer: StepScorer | ScoringBackend | str | PathLike,
        *,
        aggregation: str | None = None,
        question_column: str = QUESTION_COLUMN,
        steps_of: str | None = None,
        render_message: Callable[[dict[str, Any]], str] | None = None,
        unscorable_reward: float | None = None,
        eta: float | None = None,
        name: str = NAME,
        processing_class=None,
        eos_token_ids: list[int] | None = None,
        scorer_kwargs: dict[str, Any] | None = None,
    ):
        self._scorer_kwargs = BATCH_LIMITS | (scorer_kwargs or {})
        if isinstance(scorer, (str, PathLike)):  # raises errors before the first generation
            self._scorer = local_path(scorer)
            if eta is not None:
                self._scorer_kwargs = {**self._scorer_kwargs, "eta": eta}
            options = self._scorer_kwargs
            prm_format = load_format(self._scorer, options.get("prm_format"), options.get("revision"))
            self.prm_format = format_at_eta(prm_format, options.get("eta"), options.get("trained_eta"))
        else:
            self._scorer = StepScorer.of(scorer)
            if eta is not None:
                self._scorer = self._scorer.at_eta(eta)
            self.prm_format = self._scorer.prm_format
        self.aggregation = aggregation or self.prm_format.aggregation
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}. Choose one."
            )
        if unscorable_reward is not None and not (
            isinstance(unscorable_reward, (int, float)) and math.isfinite(unscorable_reward)
        ):
            raise ValueError(
                f"unscorable_reward: got {unscorable_reward!r}, expected a finite number, or None. Set for example 0."
            )
        if steps_of not in (None, TURNS, *STEPS_OF):
            raise ValueError(
                f"steps_of: got {steps_of!r}, expected one of {', '.join((TURNS, *STEPS_OF))}, or None. Choose one."
            )
        self.steps_of = steps_of
        self.render_message = render_message
        self.__name__ = name  # the name in TRL's metrics
        self.unscorable_reward = unscorable_reward
        self.question_column = question_column
        self.processing_class = processing_class
        self.eos_token_ids = eos_token_ids
        # The next four are set by a step trainer. The accelerator lets its processes stop together.
        self.chat_template_kwargs: dict[str, Any] | None = None
        self.accelerator = None
        self.handoff: Handoff[ScoredBatch] | None = None
        self.continuations: Any = None  # scores completions by the policy's own continuations
        self.single_step_warning: SingleStepWarning | None = SingleStepWarning()
        self._loading = Lock()  # some of TRL's trainers call from several threads

    def __getstate__(self) -> dict[str, Any]:
        """Returns all attributes except the lock, for trainers that send reward functions to other processes."""
        return {name: value for name, value in vars(self).items() if name != "_loading"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the attributes from [`~StepRewardFunction.__getstate__`]."""
        vars(self).update(state)
        self._loading = Lock()

    @property
    def scorer(self) -> StepScorer:
        """The reward model. It is loaded at the first access."""
        with self._loading:
            if isinstance(self._scorer, str):
                self._scorer = StepScorer.from_pretrained(self._scorer, **self._scorer_kwargs)
            return self._scorer

    @property
    def samples_policy(self) -> bool:
        """Whether continuations of the policy that is trained give the scores: `MonteCarloScorer("policy")`."""
        if isinstance(self._scorer, str):
            return is_scorer_file(self._scorer) and samples_policy(self._scorer)
        backend = self._scorer.backend
        return isinstance(backend, MonteCarloScorer) and backend.samples_policy

    def shard(self, accelerator) -> None:
        """
        Shards a reward model that is not loaded yet over the processes of a ZeRO-3 training run.

        Args:
            accelerator ([`~accelerate.Accelerator`]):
                Accelerator of the training run.

        Raises:
            `ValueError`: if the reward model is already loaded, or if the training run does not use ZeRO-3.
        """
        check_sharding(self._scorer, accelerator)
        self._scorer_kwargs = {**self._scorer_kwargs, "accelerator": accelerator}

    def __call__(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]] | None = None,
        log_metric=None,
        log_extra=None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Scores and logs a batch. TRL calls this method.

        Args:
            prompts, completions, completion_ids, columns:
                See [`~StepRewardFunction.score_batch`].
            log_metric (`Callable`, *optional*):
                TRL's function to log a metric.
            log_extra (`Callable`, *optional*):
                TRL's function to log a column of values.

        Returns:
            `list[float | None]`: one reward in [0, 1] per completion, or `unscorable_reward`.

        Raises:
            `FloatingPointError`: if a score is not finite. TRL would treat NaN as a missing reward.
            `ValueError`: if the dataset has no column `question_column`, except for the default `"question"`.
        """
        batch = self.score_batch(prompts, completions, completion_ids, **columns)
        if self.handoff is not None:
            self.handoff.put(batch)
        prefix = "" if self.__name__ == NAME or self.handoff is not None else f"{self.__name__}/"
        if log_metric is not None and self.handoff is None:  # a step trainer logs the metrics of its batch
            for name, value in batch.metrics.items():
                log_metric(prefix + name, value)
        if log_extra is not None:
            for name, values in batch.extras.items():
                log_extra(prefix + name, values)
        return [self.unscorable_reward if reward is None else reward for reward in batch.rewards]

    def score_batch(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> ScoredBatch:
        """
        Scores every step of a batch. It logs nothing and has no side effects, except that a reward model from a path
        or id is loaded at the first call. The processes of a step trainer must call it together.

        Args:
            prompts (`list`):
                Prompts, as texts or conversations.
            completions (`list`):
                Completions, as texts or conversations.
            completion_ids (`list[list[int]]`, *optional*):
                The policy's tokens of each completion.
            columns:
                Other columns of the dataset, and TRL's `trainer_state`.

        Returns:
            [`ScoredBatch`]: step scores, rewards, and values to log.

        Raises:
            `FloatingPointError`: if a score is not finite.
            `TypeError`: if `prompts` or `completions` is a single text.
            `ValueError`: if the dataset has no column `question_column` (except for the default `"question"`), or if
                the numbers of prompts and completions differ.
        """
        for name, values in (("prompts", prompts), ("completions", completions)):
            refuse_text(name, values, "a list of texts or conversations")
        if len(prompts) != len(completions):
            raise ValueError(
                f"{self.__name__}: got {len(prompts)} prompts and {len(completions)} completions, expected one prompt "
                "per completion. Repeat a prompt for each of its completions."
            )
        if not completions:
            return ScoredBatch([], {}, {"step_scores": []})
        if self.question_column not in (QUESTION_COLUMN, *columns):
            names = ", ".join(sorted(set(columns) - NO_COLUMNS))
            raise ValueError(
                f"question_column of {self.__name__}: got {self.question_column!r}, expected one of the dataset's "
                f"columns ({names}). Choose one of them, or do not set it to read the question from the prompt."
            )
        parts = self._parts(prompts, completions, completion_ids, columns)
        steps = [texts for texts, _ in parts]
        if self.single_step_warning and self.steps_of != TURNS and not {"environments", "tool_mask"} & columns.keys():
            self.single_step_warning(steps, self.prm_format.splitter)
        kept = [texts if token_ends is not None and all(texts) else [] for texts, token_ends in parts]
        questions = self._questions(prompts, columns)
        if self.continuations is None:
            scores = self.scorer.score(questions, kept, skip_too_long=True)
        else:
            token_ends = [ends if texts else None for texts, (_, ends) in zip(kept, parts, strict=True)]
            scores = self.continuations.score(prompts, completions, completion_ids, token_ends, columns)
        self._check(scores, getattr(columns.get("trainer_state"), "global_step", None))
        rewards = solution_scores(scores, self.aggregation)
        scored = [
            ScoredCompletion(values, token_ends if values else [], texts, reward)
            for values, (texts, token_ends), reward in zip(scores, parts, rewards, strict=True)
        ]
        metrics = self._metrics(steps, scores, completion_ids)
        if (num_tokens := num_own_tokens(completions, completion_ids, columns.get("tool_mask"))) is not None:
            # The tokens of completions without a step belong to no step.
            in_steps = sum(count for count, texts in zip(num_tokens, steps, strict=True) if texts)
            metrics["steps/tokens_per_step"] = in_steps / max(1, sum(map(len, steps)))
        return ScoredBatch(scored, metrics, {"step_scores": rounded_scores(scores)}, questions)

    def _questions(self, prompts: list, columns: dict[str, Any]) -> list[str]:
        questions = columns.get(self.question_column) or [None] * len(prompts)
        if "environments" in columns and self.question_column == QUESTION_COLUMN:
            return [observed_question(question, prompt) for question, prompt in zip(questions, prompts, strict=True)]
        return [question or question_text(prompt) for question, prompt in zip(questions, prompts, strict=True)]

    def _parts(
        self, prompts: list, completions: list, completion_ids: list[list[int]] | None, columns: dict[str, Any]
    ) -> list[tuple[list[str], list[int] | None]]:
        """The steps of each completion, and the last token of each step."""
        # The chat template adds `<think>` to all prompts or to none, so the first prompt is enough.
        template_opens = opens_thinking(prompts[0], self.processing_class, self.chat_template_kwargs)
        tool_masks: Sequence[list[int] | None] | None = columns.get("tool_mask")
        by_turns = "environments" in columns or tool_masks is not None
        missing = [None] * len(completions)
        parts = []
        for prompt, completion, token_ids, tool_mask in zip(
            prompts, completions, completion_ids or missing, tool_masks or missing, strict=True
        ):
            is_thinking = opens_thinking(prompt) if isinstance(prompt, str) else template_opens
            parts.append(self.split(completion, by_turns, is_thinking, token_ids, tool_mask))
        return parts

    def split(
        self,
        completion: "str | list[dict[str, Any]]",
        by_turns: bool = False,
        is_thinking: bool = False,
        token_ids: list[int] | None = None,
        tool_mask: list[int] | None = None,
    ) -> tuple[list[str], list[int] | None]:
        """
        Splits a completion into steps.

        Args:
            completion (`str` or `list[dict[str, Any]]`):
                Completion, as a text or a conversation.
            by_turns (`bool`, *optional*, defaults to `False`):
                Whether the trainer has tools or an environment. Each assistant turn is then a step, unless `steps_of`
                has another value.
            is_thinking (`bool`, *optional*, defaults to `False`):
                Whether the policy's texts begin inside `<think>`.
            token_ids (`list[int]`, *optional*):
                Tokens of the completion.
            tool_mask (`list[int]`, *optional*):
                1 at each token that the policy wrote, and 0 at the others.

        Returns:
            `tuple[list[str], list[int] | None]`: the text of each step, and the index of its last token, see
            [`completion_steps`] and [`turn_steps`].
        """
        prm_format = self.prm_format
        if self.steps_of in STEPS_OF:
            prm_format = replace(prm_format, steps_of=self.steps_of)
        options = {"is_thinking": is_thinking, "tokenizer": self.processing_class, "token_ids": token_ids}
        if self.steps_of == TURNS or (self.steps_of is None and (by_turns or has_turns(completion))):
            return turn_steps(completion, prm_format, tool_mask=tool_mask, render=self.render_message, **options)
        return completion_steps(completion, prm_format, **options)

    def rescore(self, batch: ScoredBatch, global_step: int | None = None) -> ScoredBatch:
        """
        Scores the steps of a batch again, after the reward model's weights have changed. The processes of a step
        trainer must call it together.

        Args:
            batch ([`ScoredBatch`]):
                Batch of [`~StepRewardFunction.score_batch`].
            global_step (`int`, *optional*):
                Number of updates so far, for error messages.

        Returns:
            [`ScoredBatch`]: the batch with new scores, rewards and logged scores. A completion that had no scores has
            none.

        Raises:
            `FloatingPointError`: if a score is not finite.
        """
        kept = [completion.steps if completion.scores else [] for completion in batch.completions]
        scores = self.scorer.score(batch.questions, kept, skip_too_long=True)
        self._check(scores, global_step)
        rewards = solution_scores(scores, self.aggregation)
        completions = [
            completion._replace(scores=values, reward=reward)
            for completion, values, reward in zip(batch.completions, scores, rewards, strict=True)
        ]
        return replace(
            batch,
            completions=completions,
            metrics={**batch.metrics, **mean_score(scores)},
            extras={**batch.extras, "step_scores": rounded_scores(scores)},
        )

    def _check(self, scores: list[list[float]], global_step: int | None) -> None:
        first_bad = [first_not_finite(scores)]
        if self.accelerator is not None:  # an error on one process must be raised on all processes
            first_bad = gather_object(first_bad)
        for process, bad in enumerate(first_bad):
            if bad is None:
                continue
            row, step, score = bad
            whose = f" of process {process}" if len(first_bad) > 1 else ""
            what = f"the reward model's score of step {step} of completion {row}{whose}"
            raise not_finite(what, score, global_step, self.scorer.weights, self.accelerator)

    def _metrics(self, steps: list[list[str]], scores: list[list[float]], completion_ids) -> dict[str, float]:
        ending = self.eos_token_ids or (
            [self.processing_class.eos_token_id] if self.processing_class is not None else None
        )
        return step_metrics(steps, scores, completion_ids, ending)
