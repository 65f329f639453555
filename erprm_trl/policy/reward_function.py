"""Step scores as a TRL reward function: `GRPOTrainer(reward_funcs=[StepRewardFunction(...)])`.

It returns one number per completion, as TRL expects. [`StepRewardFunction.score_batch`] returns every step's score.
"""

import math
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ..functional.aggregation import AGGREGATIONS
from ..reward_model.scoring.backend import ScoringBackend
from ..reward_model.scoring.loading import load_format
from ..reward_model.scoring.scorer import StepScorer, solution_scores
from ..reward_model.scoring.sharded import check_sharding
from ..steps import clean_steps, split_steps
from ..training.nonfinite import not_finite
from .scored_batch import Handoff, ScoredBatch, ScoredCompletion
from .step_alignment import step_token_ends


class StepRewardFunction:
    """
    A process reward model as a reward function of any TRL trainer: the aggregate of a completion's step scores.

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

    Completions that cannot be scored get `None`, which TRL leaves out of a group's statistics: those without steps,
    those longer than the reward model's context, and, where the policy's tokenizer is known, those in which a step
    owns no token. Logged through `log_metric`: `steps/per_answer`, `steps/tokens_per_step`, `steps/mean_score`,
    `steps/repeated_share` (steps that say what an earlier step of the same answer says), `steps/unscorable_share` and,
    where the policy's tokenizer is known, `steps/unfinished_share`; through `log_extra`: `step_scores`.

    Args:
        scorer ([`StepScorer`], [`~erprm_trl.reward_model.ScoringBackend`], `str` or `Path`):
            The reward model: a scorer or a backend of one, a folder or Hub id that is loaded at the first call, on the
            process's own device, or the address of a scoring server, `"http://host:8100"`.
        aggregation (`str`, *optional*):
            `"min"`, `"last"`, `"product"` or `"mean"`; defaults to the reward model's own.
        question_column (`str`, *optional*, defaults to `"question"`):
            Dataset column with the bare question. Without such a column the question is the prompt: the text, or the
            last user message of a conversation.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer; the step trainers set it themselves.
        eos_token_ids (`list[int]`, *optional*):
            Ids that end a completion; defaults to the tokenizer's.
        scorer_kwargs (`dict[str, Any]`, *optional*):
            Arguments of [`StepScorer.from_pretrained`], with a path or id.

    Raises:
        `FileNotFoundError`: if a path or id is no reward model. `ValueError`: for an unknown aggregation.
    """

    __name__ = "step_reward"

    def __init__(
        self,
        scorer: StepScorer | ScoringBackend | str | Path,
        *,
        aggregation: str | None = None,
        question_column: str = "question",
        processing_class=None,
        eos_token_ids: list[int] | None = None,
        scorer_kwargs: dict[str, Any] | None = None,
    ):
        self._scorer_kwargs = scorer_kwargs or {}
        if isinstance(scorer, (str, Path)):  # an error here is cheap, later it would cost a rollout
            self._scorer = scorer
            self.prm_format = load_format(
                scorer, self._scorer_kwargs.get("prm_format"), self._scorer_kwargs.get("revision")
            )
        else:
            self._scorer = StepScorer.of(scorer)
            self.prm_format = self._scorer.prm_format
        self.aggregation = aggregation or self.prm_format.aggregation
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"Aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}.")
        self.question_column = question_column
        self.processing_class = processing_class
        self.eos_token_ids = eos_token_ids
        self.accelerator = None  # of a step trainer: its processes then stop together
        self.handoff: Handoff[ScoredBatch] | None = None  # of the step trainer that calls

    @property
    def scorer(self) -> StepScorer:
        """The reward model, loaded when it is first needed."""
        if isinstance(self._scorer, (str, Path)):
            self._scorer = StepScorer.from_pretrained(self._scorer, **self._scorer_kwargs)
        return self._scorer

    def shard(self, accelerator) -> None:
        """
        Splits a reward model that is not loaded yet over the processes of a ZeRO-3 training.

        Args:
            accelerator ([`~accelerate.Accelerator`]):
                Of the training.

        Raises:
            `ValueError`: if the scorer was given, or is loaded already, or the training is not by ZeRO-3.
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
        Scores a batch and logs it; TRL calls this.

        Args:
            prompts, completions, completion_ids, columns:
                See [`~StepRewardFunction.score_batch`].
            log_metric, log_extra (`Callable`, *optional*):
                TRL's functions for logging from a reward function.

        Returns:
            `list[float | None]`: one reward in [0, 1] per completion, `None` where it is unscorable.

        Raises:
            `FloatingPointError`: if a score is not finite. TRL would take it for a completion without a reward.
        """
        batch = self.score_batch(prompts, completions, completion_ids, **columns)
        if self.handoff is not None:
            self.handoff.put(batch)
        if log_metric is not None:
            for name, value in batch.metrics.items():
                log_metric(name, value)
        if log_extra is not None:
            for name, values in batch.extras.items():
                log_extra(name, values)
        return batch.rewards

    def score_batch(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> ScoredBatch:
        """
        Scores every step of a batch. It logs nothing and changes no attribute, except that a reward model given by its
        path or id is loaded at the first call. The processes of a step trainer call it together.

        Args:
            prompts (`list`), completions (`list`):
                Texts, or conversations.
            completion_ids (`list[list[int]]`, *optional*):
                The policy's tokens of each completion.
            columns:
                The dataset's other columns, and TRL's `trainer_state`.

        Returns:
            [`ScoredBatch`]: step scores, rewards, and values to log.

        Raises:
            `FloatingPointError`: if a score is not finite.
        """
        bare_questions = columns.get(self.question_column) or [None] * len(prompts)
        questions = [
            question or question_text(prompt) for question, prompt in zip(bare_questions, prompts, strict=True)
        ]
        texts = [completion_text(completion) for completion in completions]
        pieces = [split_steps(text, self.prm_format.splitter) for text in texts]
        steps = [clean_steps(text_pieces, self.prm_format.splitter) for text_pieces in pieces]
        ends: list[list[int] | None] = [[] for _ in texts]
        if completion_ids is not None and self.processing_class is not None:
            ends = [
                step_token_ends(self.processing_class, ids, text, list(accumulate(map(len, text_pieces))))
                for ids, text, text_pieces in zip(completion_ids, texts, pieces, strict=True)
            ]
        kept = [[] if token_ends is None else parts for parts, token_ends in zip(steps, ends, strict=True)]
        scores = self.scorer.score(questions, kept, skip_too_long=True)
        self._check(scores, getattr(columns.get("trainer_state"), "global_step", None))
        rewards = solution_scores(scores, self.aggregation)
        scored = [
            ScoredCompletion(values, token_ends if values else [], parts, reward)
            for values, token_ends, parts, reward in zip(scores, ends, steps, rewards, strict=True)
        ]
        extras = {"step_scores": [[round(score, 4) for score in values] for values in scores]}
        return ScoredBatch(scored, self._metrics(steps, scores, completion_ids), extras)

    def _check(self, scores: list[list[float]], global_step: int | None) -> None:
        first_bad = [first_not_finite(scores)]
        if self.accelerator is not None:  # what is wrong on one process is wrong on all
            first_bad = gather_object(first_bad)
        for process, bad in enumerate(first_bad):
            if bad is None:
                continue
            row, step, score = bad
            whose = f" of process {process}" if len(first_bad) > 1 else ""
            what = f"the reward model's score of step {step} of completion {row}{whose}"
            raise not_finite(what, score, global_step, self.scorer.weights, self.accelerator)

    def _metrics(self, steps: list[list[str]], scores: list[list[float]], completion_ids) -> dict[str, float]:
        num_steps = max(1, sum(map(len, steps)))
        flat = [score for values in scores for score in values]
        metrics = {
            "steps/per_answer": sum(map(len, steps)) / len(steps),
            "steps/repeated_share": sum(len(steps_S) - len(set(steps_S)) for steps_S in steps) / num_steps,
            "steps/unscorable_share": sum(not values for values in scores) / len(scores),
        }
        if flat:
            metrics["steps/mean_score"] = sum(flat) / len(flat)
        if completion_ids is not None:
            metrics["steps/tokens_per_step"] = sum(map(len, completion_ids)) / num_steps
            ending = self.eos_token_ids or (
                [self.processing_class.eos_token_id] if self.processing_class is not None else None
            )
            if ending:
                unfinished = sum(not ids or ids[-1] not in ending for ids in completion_ids)
                metrics["steps/unfinished_share"] = unfinished / len(completion_ids)
        return metrics


def first_not_finite(scores: list[list[float]]) -> tuple[int, int, float] | None:
    """Row, step and value of the first step score that is not finite."""
    flat = ((row, step, score) for row, values in enumerate(scores) for step, score in enumerate(values))
    return next((place for place in flat if not math.isfinite(place[2])), None)


def completion_text(completion: "str | list[dict[str, Any]]") -> str:
    """The text of a completion: itself, or what the last message of a conversation says."""
    return completion if isinstance(completion, str) else _content(completion[-1]) if completion else ""


def question_text(prompt: "str | list[dict[str, Any]]") -> str:
    """The question of a prompt: itself, or what the last user message of a conversation says."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return _content(asked[-1]) if asked else ""


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
