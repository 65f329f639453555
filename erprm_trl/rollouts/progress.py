"""The progress bar of a collection. It also advances within a chunk, because a chunk of a large model takes
minutes."""

import threading
import time
from dataclasses import dataclass

from ..io.progress_bars import progress_bar
from .records import CollectionSettings


GUESSED_STEPS = 5  # assumed number of steps per solution until the first solutions are sampled


@dataclass
class _Chunk:
    """A chunk in progress: its numbers of questions and solutions, of texts that finished calls have sampled and that
    are expected in all, and the largest share that was sampled."""

    num_questions: int
    num_solutions: int
    expected: float
    sampled: int = 0
    share: float = 0.0


class CollectionProgress:
    """
    Shows the number of finished questions, the texts and tokens of the current call of the sampler, and the time left.

    Several chunks may be in progress, but only one call of the sampler. Two threads may use the bar.

    Args:
        settings ([`CollectionSettings`]):
            Settings of the collection.
        num_done (`int`):
            Number of questions that earlier runs have finished.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes. The others are assumed to progress as fast as this one.
        show (`bool`, *optional*, defaults to `True`):
            Whether to show the bar.

    Attributes:
        num_tokens (`int`): number of tokens that the samplers have reported so far.
    """

    def __init__(self, settings: CollectionSettings, num_done: int, num_processes: int = 1, show: bool = True):
        self.settings, self.num_processes = settings, num_processes
        self.num_tokens = 0
        self._num_done = num_done
        self._num_solutions = self._num_prefixes = 0  # in chunks whose solutions are sampled
        self._chunks: dict[int, _Chunk] = {}
        self._lock = threading.Lock()
        self._bar = progress_bar(
            settings.num_questions,
            "Collecting rollouts",
            unit="questions",
            show=show,
            initial=num_done,
            smoothing=0,  # the mean rate over the whole run, because the duration of calls varies a lot
        )

    def __enter__(self) -> "CollectionProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def begin_chunk(self, num_questions: int, num_solutions: int, chunk: int = 0) -> None:
        """Starts a chunk of `num_questions` questions with `num_solutions` solutions in all."""
        with self._lock:
            steps = self._num_prefixes / self._num_solutions if self._num_solutions else GUESSED_STEPS - 1
            expected = num_solutions * (1 + steps * self.settings.num_continuations)
            self._chunks[chunk] = _Chunk(num_questions, num_solutions, expected)

    def begin_continuations(self, num_prefixes: int, num_continuations: int, chunk: int = 0) -> None:
        """Records the number of continuations, which is known once the solutions of the chunk are sampled."""
        with self._lock:
            state = self._chunks[chunk]
            self._num_prefixes += num_prefixes
            self._num_solutions += state.num_solutions
            state.expected = state.sampled + num_continuations

    def begin_call(self, what: str, num_texts: int, chunk: int = 0) -> None:
        """Starts a call of the sampler for `num_texts` solutions or continuations."""
        self._what, self._num_texts, self._current = what, num_texts, self._chunks[chunk]
        policy = self.settings.sampler if what == "solutions" else self.settings.completer or self.settings.sampler
        self._longest = policy.get("max_new_tokens")
        self._texts = self._tokens = 0
        self._started = time.monotonic()
        self.update(0, 0)

    def update(self, num_texts: int, num_tokens: int) -> None:
        """Adds the number of texts that have ended and of tokens that were sampled since the last update."""
        self._texts += num_texts
        self._tokens += num_tokens
        self.num_tokens += num_tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-3)
        speed = f", {rate:.0f} tokens/s" if self._tokens else ""
        texts = self._texts
        # Long texts all end late, so their tokens count before they end.
        if self._longest:
            texts = max(texts, min(self._tokens / self._longest, self._num_texts))
        with self._lock:
            self._bar.set_postfix_str(f"{self._what} {self._texts}/{self._num_texts}{speed}", refresh=False)
            self._current.share = min(1.0, (self._current.sampled + texts) / max(self._current.expected, 1))
            self._move()

    def end_call(self) -> None:
        """Ends the call. This counts all its texts, also for samplers that report no progress."""
        self._current.sampled += self._num_texts

    def end_chunk(self, chunk: int = 0, **counts: int) -> None:
        """Ends the chunk, after it was written to disk. The counts are shown after the bar."""
        with self._lock:
            self._num_done += self._chunks.pop(chunk).num_questions * self.num_processes
            self._bar.set_postfix(counts, refresh=False)
            self._move()

    def _move(self) -> None:
        shares = sum(state.share * state.num_questions for state in self._chunks.values())
        questions = self._num_done + shares * self.num_processes
        questions = round(min(questions, self.settings.num_questions), 2)
        # The share decreases if solutions have more steps than assumed. The bar then does not move.
        self._bar.n = max(questions, self._bar.n)
        self._bar.update(0)
