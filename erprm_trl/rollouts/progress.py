"""The progress bar of a collection. It moves while a chunk is sampled, since the first chunk of a large model takes
minutes."""

import time

from ..io.progress_bars import progress_bar
from .records import CollectionSettings


GUESSED_STEPS = 5  # per solution, until there are any


class CollectionProgress:
    """
    Shows the share of questions that are done, the texts and tokens of the current call of the sampler, and the time
    left.

    Args:
        settings ([`CollectionSettings`]):
            Settings of the collection.
        num_done (`int`):
            Number of questions that earlier runs have done.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes, each of which is taken to be as far as this one.
        show (`bool`, *optional*, defaults to `True`):
            Whether to show the bar.
    """

    def __init__(self, settings: CollectionSettings, num_done: int, num_processes: int = 1, show: bool = True):
        self.settings, self.num_processes = settings, num_processes
        self._num_done = num_done
        self._num_solutions = self._num_prefixes = 0  # of the chunks that are done
        self._bar = progress_bar(
            settings.num_questions,
            "Collecting rollouts",
            unit="questions",
            show=show,
            initial=num_done,
            smoothing=0,  # calls differ too much for anything but the mean rate
        )

    def __enter__(self) -> "CollectionProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def begin_chunk(self, num_questions: int) -> None:
        """A chunk of so many questions begins."""
        self._num_questions = num_questions
        self._sampled = 0
        solutions = num_questions * self.settings.num_solutions
        steps = self._num_prefixes / self._num_solutions if self._num_solutions else GUESSED_STEPS - 1
        self._expected = solutions * (1 + steps * self.settings.num_continuations)

    def begin_continuations(self, num_prefixes: int, num_continuations: int) -> None:
        """The solutions of the chunk are sampled: from now on it is known how much there is to do."""
        self._num_prefixes += num_prefixes
        self._expected = self._sampled + num_continuations

    def begin_call(self, what: str, num_texts: int) -> None:
        """A call of the sampler begins, for so many solutions or continuations."""
        self._what, self._num_texts = what, num_texts
        self._texts = self._tokens = 0
        self._started = time.monotonic()
        self.update(0, 0)

    def update(self, num_texts: int, num_tokens: int) -> None:
        """So many texts have ended and so many tokens were sampled since the last update."""
        self._texts += num_texts
        self._tokens += num_tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-3)
        speed = f", {rate:.0f} tokens/s" if self._tokens else ""
        self._bar.set_postfix_str(f"{self._what} {self._texts}/{self._num_texts}{speed}", refresh=False)
        texts = self._texts
        if longest := self.settings.sampler.get(
            "max_new_tokens"
        ):  # long texts all end late: their tokens count before
            texts = max(texts, min(self._tokens / longest, self._num_texts))
        self._move((self._sampled + texts) / max(self._expected, 1))

    def end_call(self) -> None:
        """The call has ended. Samplers that report nothing have sampled everything now."""
        self._sampled += self._num_texts

    def end_chunk(self, **numbers: int) -> None:
        """The chunk is on disk. The numbers are shown after the bar."""
        self._num_solutions += self._num_questions * self.settings.num_solutions
        self._bar.set_postfix(numbers, refresh=False)
        self._move(1.0)
        self._num_done += self._num_questions * self.num_processes

    def _move(self, share: float) -> None:
        questions = self._num_done + min(share, 1.0) * self._num_questions * self.num_processes
        questions = round(min(questions, self.settings.num_questions), 2)
        # The share falls where solutions turn out to have more steps than expected: the bar waits there.
        self._bar.n = max(questions, self._bar.n)
        self._bar.update(0)
