"""The distinct prefixes of a question's solutions with their rewards. Rewards come from their own continuations, and
from texts that were sampled from shorter prefixes and begin with them."""

import numpy as np


class SharedPrefixes:
    """
    The distinct prefixes of a question's solutions, with the rewards of their continuations.

    A text that was sampled from a prefix, and that begins with a longer prefix, is also a continuation of the longer
    prefix: given that it begins with the longer prefix, its remaining text has the same distribution as a continuation
    sampled from there. In the same way, a solution is a continuation of each of its own prefixes, and of prefixes of
    other solutions with which it begins. A text counts once for each of these prefixes. It never counts for prefixes
    shorter than the prefix from which it was sampled, because it is not a random continuation of them.

    There are two approximations. Texts are compared instead of tokens, although the same text may have different
    tokens. And a text that was sampled from a shorter prefix has fewer of its `max_new_tokens` left.

    Args:
        reuse (`bool`):
            Whether a text also counts for longer prefixes with which it begins.

    Attributes:
        texts (`list[str]`): the distinct prefixes.
        weights (`list[int]`): number of labels that each prefix determines.
        generated (`list[list[float]]`): rewards of the continuations that were sampled from each prefix.
        inherited (`list[list[float]]`): rewards of other texts that begin with each prefix.
    """

    def __init__(self, reuse: bool):
        self.reuse = reuse
        self.texts: list[str] = []
        self.weights: list[int] = []
        self.generated: list[list[float]] = []
        self.inherited: list[list[float]] = []
        self._index: dict[str, int] = {}
        self._through: list[tuple[int, ...]] = []

    def add_prefix(self, text: str) -> int:
        """Adds a prefix, and returns its index. If it exists already, the number of its labels is increased."""
        if text not in self._index:
            self._index[text] = len(self.texts)
            self.texts.append(text)
            self.weights.append(0)
            self.generated.append([])
            self.inherited.append([])
        self.weights[self._index[text]] += 1
        return self._index[text]

    def add_text(self, text: str, reward: float, start: int | None = None) -> None:
        """
        Counts a text for all prefixes with which it begins. All prefixes must be added before.

        Args:
            text (`str`):
                A complete text, i.e. a prefix and its continuation, or a solution.
            reward (`float`):
                Reward of the text.
            start (`int`, *optional*):
                Index of the prefix from which the text was sampled, `None` for the bare question.
        """
        past = -1 if start is None else len(self.texts[start])
        through = [] if start is None else [start]
        if start is not None:
            self.generated[start].append(reward)
        if self.reuse:
            passed = [
                index
                for index, prefix in enumerate(self.texts)
                if len(prefix) > past and _passes_through(text, prefix)
            ]
            for index in passed:
                self.inherited[index].append(reward)
            self._through.append((*through, *passed))

    @property
    def rewards(self) -> list[list[float]]:
        """All rewards of each prefix, first those in `generated` and then those in `inherited`."""
        return [generated + inherited for generated, inherited in zip(self.generated, self.inherited, strict=True)]

    def reach(self) -> np.ndarray:
        """
        Estimates the probability that a continuation of one prefix begins with another prefix.

        Returns:
            `numpy.ndarray`: probabilities (P, P), from the prefix of the row to the prefix of the column. They are 1
            on the diagonal, and 0 if the column's prefix is not an extension of the row's prefix. Others are estimated
            from the texts so far, as (passed + 1/2) / (all + 1).
        """
        size = len(self.texts)
        passed = np.zeros((size, size))
        for prefixes in self._through:
            for prefix in prefixes:
                passed[prefix, list(prefixes)] += 1
        begins = np.array(
            [[self.reuse and _passes_through(longer, prefix) for longer in self.texts] for prefix in self.texts],
            dtype=bool,
        ).reshape(size, size)
        longer = np.array([[len(b) > len(a) for b in self.texts] for a in self.texts], dtype=bool).reshape(size, size)
        chance = (passed + 0.5) / (np.diag(passed)[:, None] + 1)
        return np.where(np.eye(size, dtype=bool), 1.0, np.where(begins & longer, chance, 0.0))


def _passes_through(text: str, prefix: str) -> bool:
    # Most tokenizers have one token for several line breaks. A text with more line breaks therefore does not contain
    # the tokens of the prefix.
    return text.startswith(prefix) and not (prefix.endswith("\n") and text.startswith("\n", len(prefix)))
