"""Defines the protocol of a scoring backend, and the error for a solution that is too long.

Read this to add a new way to score. Write a class with the protocol's members, and pass an instance to
`StepScorer.from_backend`, or to any function that takes a scorer.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from ..prm_format import PRMFormat


@runtime_checkable
class ScoringBackend(Protocol):
    """
    Computes step scores. Any class with these five members is a backend. It does not need to inherit from this class.

    [`StepScorer`] wraps a backend. It checks lengths, removes duplicate solutions, splits texts and aggregates scores.
    A backend therefore gets as many questions as solutions, and no duplicates.

    Attributes:
        prm_format ([`PRMFormat`]):
            The reward model's format. [`StepScorer`] takes the splitter and the aggregation from it.
        model_name (`str`):
            Name of the model, for manifests.
        context_length (`int` or `None`):
            Maximum length of a solution in tokens, including the question. `None` means no limit.
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
        """Maximum length of a solution in tokens, including the question, or `None` without a limit."""

    @property
    def weights(self) -> nn.Module | None:
        """The model, if it is in this process."""

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool
    ) -> list[list[float]]:
        """
        Scores every step.

        Args:
            questions (`Sequence[str]`):
                One question per solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without separators.
            skip_too_long (`bool`):
                Whether to return an empty list for a solution that is too long, instead of raising an error.

        Returns:
            `list[list[float]]`: one score in [0, 1] per step of each solution.

        Raises:
            [`SolutionTooLong`]: if a solution is too long and `skip_too_long` is `False`.
        """


@runtime_checkable
class CollectiveBackend(ScoringBackend, Protocol):
    """
    A backend that all processes of a training run call together.

    A process that fails before the call must notify the other processes, because they would wait for it forever.
    """

    def give_up(self) -> None:
        """Makes the current call of the other processes raise an error."""


@runtime_checkable
class OutcomeBackend(ScoringBackend, Protocol):
    """
    A backend that scores the last step of a solution by the solution's outcome, so that solutions must be complete.
    """

    def for_unfinished(self) -> ScoringBackend:
        """The same backend for solutions that may be unfinished, e.g. in guided search."""


class ScoreOnlyBackend:
    """
    A backend over an object that only has `score(questions, steps)`. Attributes of the object replace the defaults
    below.

    Args:
        scorer (`Any`):
            Object whose `score(questions, steps)` returns one score in [0, 1] per step of each solution.
    """

    def __init__(self, scorer):
        self._scorer = scorer
        self.prm_format: PRMFormat = getattr(scorer, "prm_format", None) or PRMFormat()
        self.model_name: str = getattr(scorer, "model_name", None) or type(scorer).__name__
        self.context_length: int | None = getattr(scorer, "context_length", None)
        self.weights: nn.Module | None = getattr(scorer, "weights", None)

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool
    ) -> list[list[float]]:
        """Scores of every step; see [`ScoringBackend.score`]."""
        return self._scorer.score(list(questions), [list(solution) for solution in steps])


class SolutionTooLong(ValueError):
    """
    A solution is longer than the reward model's context.

    Args:
        index (`int`):
            Index of the solution in the call that raises this error.
        reason (`str`):
            Rest of the message, after "Solution {index}".
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"Solution {index} {reason}")
        self.index, self.reason = index, reason
