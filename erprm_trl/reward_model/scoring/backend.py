"""What [`StepScorer`] asks of the thing that computes scores: the protocol of a backend, and the error for a solution
that is too long.

Read it to add a way to score: write a class with the protocol's members, and give an object of it to
`StepScorer.from_backend`, or to anything that takes a scorer. A path or address gets its backend from `load_backend`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from ..prm_format import PRMFormat


@runtime_checkable
class ScoringBackend(Protocol):
    """
    Computes step scores. Any class with these five members is a backend; it inherits nothing.

    [`StepScorer`] wraps a backend and does the rest: it checks lengths, scores equal solutions once, splits texts and
    aggregates. A backend therefore gets as many questions as solutions, and no solution twice.

    Attributes:
        prm_format ([`PRMFormat`]):
            The reward model's format. [`StepScorer`] takes splitter and aggregation from it.
        model_name (`str`):
            Name of the model, for manifests.
        context_length (`int` or `None`):
            Longest solution in tokens, the question included. `None` without a limit.
        weights ([`~torch.nn.Module`] or `None`):
            The model, if it is in this process. It is searched for non-finite weights when a score is not finite.

    Example: a backend that scores a step by its length.

    ```python
    >>> class LengthBackend:
    ...     prm_format, model_name, context_length, weights = PRMFormat(), "length", None, None
    ...
    ...     def score(self, questions, steps, skip_too_long):
    ...         return [[1 / len(step) for step in solution] for solution in steps]

    >>> StepScorer.from_backend(LengthBackend()).score(["2 + 3?"], [["2 + 3 = 5", "5"]])
    [[0.1111111111111111, 1.0]]
    ```
    """

    @property
    def prm_format(self) -> PRMFormat:
        """The reward model's format."""

    @property
    def model_name(self) -> str:
        """Name of the model, for manifests."""

    @property
    def context_length(self) -> int | None:
        """Longest solution in tokens, the question included, or `None` without a limit."""

    @property
    def weights(self) -> nn.Module | None:
        """The model, if it is in this process."""

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool
    ) -> list[list[float]]:
        """
        Scores of every step.

        Args:
            questions (`Sequence[str]`):
                One question per solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without separators.
            skip_too_long (`bool`):
                Whether a solution that is too long gets an empty list instead of an error.

        Returns:
            `list[list[float]]`: one score in [0, 1] per step of each solution.

        Raises:
            [`SolutionTooLong`]: if a solution is too long and `skip_too_long` is `False`.
        """


@runtime_checkable
class CollectiveBackend(ScoringBackend, Protocol):
    """
    A backend that all processes of a training call together.

    A process that fails before its backend is called has to tell the others, or they would wait for it.
    """

    def give_up(self) -> None:
        """Ends the call that the other processes are in: theirs raises an error."""


class SolutionTooLong(ValueError):
    """
    A solution that a reward model cannot read whole.

    Args:
        index (`int`):
            Index of the solution in the call that raises.
        reason (`str`):
            The rest of the message, after "Solution {index}".
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"Solution {index} {reason}")
        self.index, self.reason = index, reason
