"""Runs the worker processes that parse untrusted answers. Workers that exceed their time limit are killed and
replaced, and never block the caller."""

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path

from .worker import METHODS


logger = logging.getLogger(__name__)

BATCH_SIZE = 64  # items per worker at a time: enough to hide the latency of the pipe, few enough to balance the load
START_LIMIT = 120.0  # seconds for the imports of a worker; the module of a caller's function may import torch
MOMENT = 1.0  # longest wait in seconds; if this process was suspended, the wait still counts as this long
PATIENCE = 20  # time limits of elapsed time after which a worker is killed that did not end at one of processor time
WARNING_INTERVAL = 60.0  # seconds between two warnings about overruns


class CallerError(Exception):
    """The caller's function raised on item `args[0]`, with the message `args[1]`."""


class _Worker:
    """One worker process, with the bytes that are being sent and received, and the items without a result so far."""

    def __init__(self, settings: dict):
        paths = [path or os.getcwd() for path in sys.path] + [str(Path(__file__).parents[2])]
        # Without SAFEPATH, `-m` would put the current folder before the standard library.
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONSAFEPATH="1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "erprm_trl.rollouts.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if settings["method"] in METHODS else None,
            bufsize=0,
            env=environment,
        )
        # Non-blocking pipes, so that a worker can never block this process.
        os.set_blocking(self.process.stdin.fileno(), False)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.outgoing = bytearray(json.dumps(settings).encode() + b"\n")
        self.incoming = b""
        self.batch: deque[int] = deque()
        self.ready = False
        self.seconds_left = START_LIMIT

    def send(self) -> None:
        try:
            del self.outgoing[: self.process.stdin.write(self.outgoing) or 0]
        except BrokenPipeError:  # the worker has died, which is handled when its output is read
            self.outgoing.clear()

    def receive(self) -> list | None:
        """The messages that have arrived, or `None` if the worker has ended."""
        chunk = self.process.stdout.read(1 << 16)
        if chunk == b"":
            return None
        *lines, self.incoming = (self.incoming + (chunk or b"")).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class GradingPool:
    """Worker processes that are started when there is work, and replaced if they exceed their time limit or die."""

    def __init__(self, settings: dict, num_workers: int, time_limit: float):
        self.settings, self.num_workers, self.time_limit = settings, num_workers, time_limit
        self.patience = time_limit * (PATIENCE if settings["method"] in METHODS else 1)
        self.num_timeouts = 0
        self._warned_at = -WARNING_INTERVAL
        self._is_cancelled = False
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock, self._workers = os.getpid(), threading.Lock(), []
        self._selector = selectors.DefaultSelector()
        # A pool that is dropped without `close`, such as the pool of a reward function, must not leave processes or
        # zombies behind. At the end of this process, workers end when their input is closed.
        weakref.finalize(self, _end, self._workers, self._pid).atexit = False

    def run(self, items: list[tuple[str, str, str]]) -> list[tuple[float, str | None]]:
        """Returns reward and final answer for each `(operation, completion, answer)`, in order."""
        if os.getpid() != self._pid:  # after a fork, the pipes and the lock belong to the parent
            self._reset()
        with self._lock:
            overruns = self.num_timeouts
            self._items, self._todo = items, deque(range(len(items)))
            self._results, self._retried = {}, set()
            try:
                while len(self._results) < len(items):
                    if self._is_cancelled:
                        raise RuntimeError("Grading was cancelled.")
                    self._share_out()
                    self._listen()
            except BaseException:  # also after an interrupt, because the next call must not get replies to this call
                self._stop_workers()
                raise
            if self.num_timeouts > overruns:
                self._warn(self.num_timeouts - overruns)
            return [self._results[index] for index in range(len(items))]

    def _share_out(self) -> None:
        size = max(1, min(BATCH_SIZE, len(self._items) // (4 * self.num_workers)))
        free = [worker for worker in self._workers if not worker.batch]
        while self._todo and (free or len(self._workers) < self.num_workers):
            worker = free.pop() if free else self._start()
            worker.batch.extend(self._todo.popleft() for _ in range(min(size, len(self._todo))))
            message = [(index, *self._items[index]) for index in worker.batch]
            worker.outgoing += json.dumps(message).encode() + b"\n"
            if worker.ready:
                worker.seconds_left = self.patience
            self._selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)

    def _start(self) -> _Worker:
        worker = _Worker(self.settings)
        self._workers.append(worker)
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _listen(self) -> None:
        owing = [worker for worker in self._workers if worker.batch]
        started = time.monotonic()
        events = self._selector.select(max(0.0, min(MOMENT, *(worker.seconds_left for worker in owing))))
        waited = min(time.monotonic() - started, MOMENT)
        for worker in owing:
            worker.seconds_left -= waited
        for key, event in events:
            worker = key.data
            if worker not in self._workers:  # removed by an earlier event of this round
                continue
            if event & selectors.EVENT_WRITE:
                worker.send()
                if not worker.outgoing:
                    self._selector.unregister(worker.process.stdin)
            elif (messages := worker.receive()) is None:
                self._replace(worker, overran=False)
            else:
                for message in messages:
                    self._take(worker, message)
                worker.seconds_left = self.patience if worker.ready else worker.seconds_left
        for worker in [worker for worker in self._workers if worker.batch and worker.seconds_left <= 0]:
            self._replace(worker, overran=True)

    def _take(self, worker: _Worker, message: dict | list) -> None:
        if isinstance(message, dict):
            if "error" in message:
                raise RuntimeError(
                    f"The grading function {self.settings['method']!r} cannot be loaded in a worker process: "
                    f"{message['error'].rstrip('.')}. Expected a function 'package.module:function' that can be "
                    "imported. Check the spelling and PYTHONPATH."
                )
            worker.ready = True
            return
        index, reward, extracted, timed_out, error = message
        if error is not None:
            raise CallerError(index, error)
        worker.batch.popleft()
        self._results[index] = (reward, extracted)
        self.num_timeouts += timed_out

    def _replace(self, worker: _Worker, overran: bool) -> None:
        self._drop(worker)
        if not worker.ready:
            raise RuntimeError(
                f"A grading worker ended, or took over {START_LIMIT:.0f} s, before it was ready (exit status "
                f"{worker.process.returncode}). Run `python -m erprm_trl.rollouts.grading.worker` to see the reason."
            )
        if worker.batch:
            index = worker.batch[0]
            # An item is retried once if its worker died, because the reason may be external (an operator, the
            # out-of-memory killer). It is not retried if it exceeded the time limit.
            overran = overran or worker.process.returncode == -signal.SIGPROF
            if overran or index in self._retried:
                self._results[worker.batch.popleft()] = (0.0, None)
                self.num_timeouts += 1
            self._retried.add(index)
            self._todo.extendleft(worker.batch)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
        worker.stop()

    def _warn(self, count: int) -> None:
        if time.monotonic() - self._warned_at >= WARNING_INTERVAL:
            self._warned_at = time.monotonic()
            logger.warning(
                f"{count} answers could not be graded in time or crashed their worker, and got reward 0 "
                f"(time_limit={self.time_limit} s, {self.num_timeouts} so far). This warning is logged at most once "
                "per minute."
            )

    def _stop_workers(self) -> None:
        for worker in list(self._workers):
            self._drop(worker)

    def cancel(self) -> None:
        """Lets calls in other threads end with an error. Call `close` afterwards."""
        self._is_cancelled = True

    def close(self) -> None:
        """Ends the workers, after a call in another thread has ended."""
        if os.getpid() == self._pid:  # a forked child must not end its parent's workers
            with self._lock:
                self._is_cancelled = False
                self._stop_workers()


def _end(workers: list[_Worker], pid: int) -> None:
    if os.getpid() == pid:
        for worker in workers:
            worker.stop()
