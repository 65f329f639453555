"""Defines what a scorer needs from the policy that is being trained: prefixes in its own tokens, and continuations.

The step trainers implement [`TrainedPolicy`].
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...rollouts.sampling.base import Completion


class OwnPrefix(NamedTuple):
    """
    The beginning of a completion, in the policy's own tokens.

    Args:
        prompt_ids (`tuple[int, ...]`):
            Tokens of the prompt.
        token_ids (`tuple[int, ...]`):
            Tokens of the completion up to the end of a step.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


class OwnCompletion(NamedTuple):
    """
    A completion of the policy.

    Args:
        prefixes (`Sequence[OwnPrefix]`):
            The prefixes that end with each step except the last, from the shortest to the longest.
        text (`str`):
            The whole completion, which is graded as the last step.
        answer (`str`):
            Reference answer.
    """

    prefixes: Sequence[OwnPrefix]
    text: str
    answer: str


class TrainedPolicy(Protocol):
    """The policy of a training run. All processes of the run call its methods together."""

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""

    def continue_prefixes(self, prefixes: Sequence[OwnPrefix], num_samples: int) -> list[list[Completion]]:
        """
        Samples `num_samples` continuations of each prefix with the current weights.

        Returns:
            `list[list[Completion]]`: the completions of each prefix. Their `text` is the whole text, including the
            prefix.
        """

    def grade(self, texts: list[str], answers: list[str]) -> list[float]:
        """Grades texts as the training run grades its completions."""
