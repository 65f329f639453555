"""The prefixes of one question's solutions and all that is known of each: the continuations sampled for it, and those
of shorter prefixes that happened to pass through it. Sampling and grading are `chunk_work`'s."""

import numpy as np


class SharedPrefixes:
    """
    The distinct prefixes of a question's solutions, with the rewards of their continuations.

    A text that was sampled from a prefix and goes on through a longer one is a continuation of the longer one too:
    given that it passes there, what follows is drawn as if it had been sampled from there. A solution likewise
    continues each of its own prefixes, and those of the question's other solutions that begin as it does. A text
    counts once for each, and never for prefixes before the one that it was sampled from: those did not choose its way.

    Two approximations: texts are compared, not tokens (two solutions may have sampled the same text as other tokens),
    and a text sampled from further back has fewer of its `max_new_tokens` left.

    Args:
        reuse (`bool`):
            Whether continuations count for the longer prefixes that they pass through.

    Attributes:
        texts (`list[str]`): the distinct prefixes.
        weights (`list[int]`): how many labels each is for.
        generated, inherited (`list[list[float]]`): rewards of the continuations sampled for it, and for others.
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
        """Registers a prefix, for one more label if it is known already, and returns its number."""
        if text not in self._index:
            self._index[text] = len(self.texts)
            self.texts.append(text)
            self.weights.append(0)
            self.generated.append([])
            self.inherited.append([])
        self.weights[self._index[text]] += 1
        return self._index[text]

    def add_text(self, text: str, reward: float, start: int | None = None) -> None:
        """Counts a whole text (prefix and continuation) that was sampled from prefix number `start`, or from the bare
        question. All prefixes must be known by then."""
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
        """All rewards known of each prefix: those generated for it, then those inherited."""
        return [own + others for own, others in zip(self.generated, self.inherited, strict=True)]

    def reach(self) -> np.ndarray:
        """
        How likely a continuation of a prefix is to pass through another: an array (P, P), 1 on its diagonal, 0 where
        the other is no longer one that begins with it; estimated from the texts so far as (passed + 1/2) / (all + 1).
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
    # Line breaks in a row are one token of most tokenizers: where there are more of them, the text went another way.
    return text.startswith(prefix) and not (prefix.endswith("\n") and text.startswith("\n", len(prefix)))
