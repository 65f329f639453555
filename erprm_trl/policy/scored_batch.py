"""The step scores of a batch of completions, and how they get from the reward function to the trainer.

TRL takes one number per completion from a reward function. The step trainers need every step's score, so the reward
function puts the whole batch into a slot, and the trainer takes it from there once.
"""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar


BatchT = TypeVar("BatchT", bound=Sized)


class ScoredCompletion(NamedTuple):
    """
    A completion after scoring. An unscorable one has steps, no scores, no token ends and no reward.

    Attributes:
        scores (`list[float]`):
            Score of each step, in [0, 1].
        token_ends (`list[int]`):
            Index of each step's last token among the policy's `completion_ids`. Empty where the reward function does
            not know the policy's tokenizer.
        steps (`list[str]`):
            Text of each step.
        reward (`float`, *optional*):
            Aggregate of the scores.
    """

    scores: list[float]
    token_ends: list[int]
    steps: list[str]
    reward: float | None


@dataclass(frozen=True)
class ScoredBatch:
    """
    A batch of completions after scoring.

    Args:
        completions (`list[ScoredCompletion]`):
            One entry per completion, in the order of the batch.
        metrics (`Mapping[str, float]`):
            Values for TRL's `log_metric`, by name.
        extras (`Mapping[str, list]`):
            Columns for TRL's `log_extra`, one value per completion.
    """

    completions: list[ScoredCompletion]
    metrics: Mapping[str, float]
    extras: Mapping[str, list[Any]]

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def rewards(self) -> list[float | None]:
        """One reward per completion, `None` where it is unscorable."""
        return [completion.reward for completion in self.completions]


class Handoff(Generic[BatchT]):
    """
    A slot for one batch. It carries a batch past TRL's code between them, from the function that made it to the one
    that uses it.
    """

    def __init__(self):
        self._batch: BatchT | None = None

    def put(self, batch: BatchT) -> None:
        """Fills the slot. A batch that nobody took is replaced: it comes from a call that failed."""
        self._batch = batch

    def take(self, length: int) -> BatchT:
        """
        Empties the slot and returns its batch.

        Args:
            length (`int`):
                Number of completions that the batch must have.

        Raises:
            `RuntimeError`: if the slot is empty, or the batch has another number of completions.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            raise RuntimeError(
                f"Step scores: got no batch, expected one of {length} completions. Each batch is taken once, after "
                "the trainer has called its StepRewardFunction. Do not replace that function in `reward_funcs`. If "
                "you did not, TRL no longer calls `_calculate_rewards`: install the version of TRL in constraints.txt."
            )
        if len(batch) != length:
            raise RuntimeError(
                f"Step scores: got a batch of {len(batch)} completions, expected {length}. The StepRewardFunction "
                "was called with other completions than the trainer's. Do not call it from another reward function."
            )
        return batch
