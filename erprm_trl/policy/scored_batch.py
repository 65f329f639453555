"""The step scores of a batch of completions, and a slot that passes them from the reward function to the trainer.

TRL takes one reward per completion from a reward function, but the step trainers need the score of every step.
Therefore the reward function puts the scored batch into the slot, and the trainer takes it from there.
"""

import logging
import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..steps import splitting_advice


logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Sized)


class ScoredCompletion(NamedTuple):
    """
    A scored completion. An unscorable completion has steps, but no scores, no token ends and no reward.

    Attributes:
        scores (`list[float]`):
            Score of each step, in [0, 1].
        token_ends (`list[int]`):
            Index of each step's last token in the policy's `completion_ids`. Empty if the reward function does not
            know the policy's tokenizer.
        steps (`list[str]`):
            Text of each step.
        reward (`float`, *optional*):
            Aggregate of the scores.
    """

    scores: list[float]
    token_ends: list[int]
    steps: list[str]
    reward: float | None


class SingleStepWarning:
    """Warns once if none of the first completions of a training has two steps, because credit for steps is then credit
    for whole completions."""

    FIRST = 16  # number of completions

    def __init__(self):
        self._texts: list[str] | None = []  # None once it is known

    def __call__(self, steps: Sequence[list[str]], splitter: str) -> None:
        """Looks at the steps of the next completions."""
        if self._texts is None:
            return
        if any(len(texts) > 1 for texts in steps):
            self._texts = None
            return
        self._texts += [texts[0] for texts in steps if texts]
        if len(self._texts) >= self.FIRST:
            logger.warning(
                "splitter=%r: none of the first %d completions has two steps, so scores and credit are the same "
                "for all of a completion. %s",
                splitter,
                len(self._texts),
                splitting_advice(self._texts),
            )
            self._texts = None


@dataclass(frozen=True)
class ScoredBatch:
    """
    A batch of scored completions.

    Args:
        completions (`list[ScoredCompletion]`):
            One entry per completion, in the order of the batch.
        metrics (`Mapping[str, float]`):
            Values for TRL's `log_metric`, by name.
        extras (`Mapping[str, list]`):
            Columns for TRL's `log_extra`, one value per completion.
        questions (`Sequence[str]`):
            The question that the reward model read with each completion.
    """

    completions: list[ScoredCompletion]
    metrics: Mapping[str, float]
    extras: Mapping[str, list[Any]]
    questions: Sequence[str] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def rewards(self) -> list[float | None]:
        """One reward per completion, `None` for an unscorable completion."""
        return [completion.reward for completion in self.completions]

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """
        Returns the step scores and the index of each step's last token, both of shape (B, S), in one copy to the
        device, for which a GPU does not wait. Scores are NaN, and indices 0, where a completion has no step. S is at
        least 1.
        """
        longest = max(1, *(len(completion.scores) for completion in self.completions))
        fill = [longest - len(completion.scores) for completion in self.completions]
        rows = [
            [[*row.scores, *[torch.nan] * padding] for row, padding in zip(self.completions, fill, strict=True)],
            [[*row.token_ends, *[0] * padding] for row, padding in zip(self.completions, fill, strict=True)],
        ]
        on_host = torch.tensor(rows, dtype=torch.float32)  # such integers are exact in float32
        if device.type == "cuda":
            on_host = on_host.pin_memory()
        scores, ends = on_host.to(device, non_blocking=True)
        return scores, ends.long()


class Handoff(Generic[BatchT]):
    """
    A slot for one batch. It passes the batch from one function to another if only TRL's code is between them.
    """

    def __init__(self):
        self._batch: BatchT | None = None

    def put(self, batch: BatchT) -> None:
        """Fills the slot. A remaining batch is replaced, because it comes from a failed call."""
        self._batch = batch

    def take(self, length: int) -> BatchT:
        """
        Empties the slot and returns its batch.

        Args:
            length (`int`):
                Expected number of completions in the batch.

        Raises:
            `RuntimeError`: if the slot is empty, or if the batch has another number of completions.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            raise RuntimeError(
                f"Step scores: got no batch, expected a batch of {length} completions from the trainer's "
                "StepRewardFunction. Do not replace this function in `reward_funcs` after the trainer is constructed. "
                "If you did not, this version of TRL no longer calls `_calculate_rewards`. Install the version of TRL "
                "in constraints.txt."
            )
        if len(batch) != length:
            raise RuntimeError(
                f"Step scores: got a batch of {len(batch)} completions, expected {length}. The trainer's "
                "StepRewardFunction was called with other completions. Do not call it from another reward function."
            )
        return batch


def step_metrics(
    steps: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    completion_ids: Sequence[Sequence[int]] | None,
    eos_token_ids: Sequence[int] | None,
) -> dict[str, float]:
    """
    The metrics of the steps of a batch.

    Args:
        steps (`Sequence[Sequence[str]]`):
            Steps of each completion.
        scores (`Sequence[Sequence[float]]`):
            Their scores, empty for an unscorable completion.
        completion_ids (`Sequence[Sequence[int]]`, *optional*):
            Tokens of each completion.
        eos_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion. Without them or `completion_ids`, it is not known how many are unfinished.

    Returns:
        `dict[str, float]`: values by the name of the metric.
    """
    num_steps = max(1, sum(map(len, steps)))
    metrics = {
        "steps/per_answer": sum(map(len, steps)) / len(steps),
        "steps/repeated_share": sum(len(steps_S) - len(set(steps_S)) for steps_S in steps) / num_steps,
        "steps/unscorable_share": sum(not values for values in scores) / len(scores),
        **mean_score(scores),
    }
    if completion_ids is not None and eos_token_ids:
        unfinished = sum(not ids or ids[-1] not in eos_token_ids for ids in completion_ids)
        metrics["steps/unfinished_share"] = unfinished / len(completion_ids)
    return metrics


def mean_score(scores: list[list[float]]) -> dict[str, float]:
    """The metric of the mean step score. Empty if there are no scores."""
    flat = [score for values in scores for score in values]
    return {"steps/mean_score": sum(flat) / len(flat)} if flat else {}


def rounded_scores(scores: list[list[float]]) -> list[list[float]]:
    """Step scores for TRL's table of completions."""
    return [[round(score, 4) for score in values] for values in scores]


def first_not_finite(scores: list[list[float]]) -> tuple[int, int, float] | None:
    """Row, step and value of the first step score that is not finite, or `None`."""
    flat = ((row, step, score) for row, values in enumerate(scores) for step, score in enumerate(values))
    return next((place for place in flat if not math.isfinite(place[2])), None)
