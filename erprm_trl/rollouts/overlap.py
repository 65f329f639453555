"""Runs the chunks of a collection so that the policy samples one chunk while the texts of another are graded.

A chunk is a generator. It yields requests, receives their results, and returns its rows. The calling thread samples,
because devices and random states belong to it. A second thread waits for the workers that grade.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

from .records import RolloutRow


logger = logging.getLogger(__name__)

IN_PROGRESS = 2  # chunks: one is sampled while the other is graded


class Sampling(NamedTuple):
    """A request that the calling thread runs."""

    run: Callable[[], Any]


class Grading(NamedTuple):
    """A request that may run in a second thread."""

    run: Callable[[], Any]


Chunk = Generator[Sampling | Grading, Any, list[RolloutRow]]
Requests = Generator[Sampling | Grading, Any, Any]  # a part of a chunk


class OverlappedChunks:
    """
    Runs chunks, at most two at a time, and writes the rows of each in the order of the chunks.

    If sampling fails, the texts that are already sampled are still graded, and complete chunks are written, before the
    error is raised. If grading or writing fails, nothing more is written, and the error is raised after the current
    call of the sampler. A second interrupt (Ctrl-C) also stops the grading.

    Args:
        write (`Callable[[list[RolloutRow]], None]`):
            Function that writes the rows of a chunk. It is called by either thread, but never by both at once.
        cancel (`Callable[[], None]`, *optional*):
            Function that lets a grading request end at once. Without it, the calling thread runs grading requests too,
            and nothing overlaps.

    Attributes:
        sampling_seconds (`float`): time in sampling requests.
        seconds (`float`): time from the first request to the last write.
    """

    def __init__(self, write: Callable[[list[RolloutRow]], None], cancel: Callable[[], None] | None = None):
        self._write, self._cancel, self._in_background = write, cancel, cancel is not None
        self.sampling_seconds = self.seconds = 0.0
        self._changed = threading.Condition()  # guards all attributes below
        self._to_sample: deque[tuple[Chunk, Sampling | Grading]] = deque()
        self._to_grade: deque[tuple[Chunk, Grading]] = deque()
        self._unwritten: deque[Chunk] = deque()
        self._rows: dict[Chunk, list[RolloutRow]] = {}  # of complete chunks that wait for an earlier chunk
        self._error: BaseException | None = None
        self._is_ending = False

    def run(self, chunks: Iterable[Chunk]) -> None:
        """Runs all chunks."""
        started = time.monotonic()
        # A daemon, so that an interrupted program can end.
        thread = threading.Thread(target=self._grade, name="grading", daemon=True)
        if self._in_background:
            thread.start()
        todo = iter(chunks)
        try:
            while (job := self._next_job(todo)) is not None:
                self._perform(*job)
        finally:
            if self._in_background:
                self._end(thread)
            self.seconds = time.monotonic() - started

    def _end(self, thread: threading.Thread) -> None:
        """Waits until all texts that are sampled are graded, or until the next interrupt."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        try:
            thread.join()
        except BaseException:
            self._cancel()
            raise

    def _next_job(self, todo: Iterator[Chunk]) -> tuple[Chunk, Sampling | Grading | None] | None:
        """The next request of a chunk in progress, or else a new chunk without a request yet. `None` at the end."""
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._to_sample:
                    return self._to_sample.popleft()
                if len(self._unwritten) < IN_PROGRESS and (chunk := next(todo, None)) is not None:
                    self._unwritten.append(chunk)
                    return chunk, None
                if not self._unwritten:
                    return None
                self._changed.wait()

    def _perform(self, chunk: Chunk, request: Sampling | Grading | None) -> None:
        started = time.monotonic()
        result = None if request is None else request.run()
        if isinstance(request, Sampling):
            self.sampling_seconds += time.monotonic() - started
        self._advance(chunk, result)

    def _grade(self) -> None:
        """Runs grading requests until there are none left at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._to_grade or self._is_ending)
                if not self._to_grade:
                    return
                chunk, request = self._to_grade.popleft()
            try:
                self._advance(chunk, request.run())
            except BaseException as error:  # raised in the calling thread
                with self._changed:
                    if self._is_ending:  # the calling thread raises another error
                        logger.error("The texts of a chunk were sampled, but not graded or written: %s", error)
                    self._error = error
                    self._changed.notify_all()
                return

    def _advance(self, chunk: Chunk, result: Any) -> None:
        try:
            request = chunk.send(result)
        except StopIteration as end:
            self._finish(chunk, end.value)
            return
        with self._changed:
            to_grade = self._in_background and isinstance(request, Grading)
            (self._to_grade if to_grade else self._to_sample).append((chunk, request))
            self._changed.notify_all()

    def _finish(self, chunk: Chunk, rows: list[RolloutRow]) -> None:
        with self._changed:
            self._rows[chunk] = rows
            while self._unwritten and self._unwritten[0] in self._rows:
                # If this fails, the chunk stays the first one, so that no other chunk follows it in the file.
                self._write(self._rows.pop(self._unwritten[0]))
                self._unwritten.popleft()
            self._changed.notify_all()
