"""Tests that chunks overlap, that their rows are written in order, and what happens after errors."""

import threading

import pytest

from erprm_trl.rollouts.overlap import Grading, OverlappedChunks, Sampling


WAIT = 30  # seconds until a test fails that waits for another thread


class Log:
    """Records what happens, and in which thread."""

    def __init__(self):
        self.events = []
        self.changed = threading.Condition()

    def __call__(self, event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_for(self, event):
        with self.changed:
            assert self.changed.wait_for(lambda: event in self.events, WAIT), (event, self.events)


def chunk(index, log, rounds=1, sample=lambda: None, grade=lambda: None):
    """A chunk that samples and grades in each round. Its only row is its index."""
    for turn in range(rounds):
        yield Sampling(lambda turn=turn: (log(f"sample {index}.{turn}"), sample()))
        yield Grading(lambda turn=turn: (grade(), log(f"grade {index}.{turn}")))
    return [index]


def run(chunks, written, overlap=True, **options):
    runner = OverlappedChunks(written.append, **{"cancel": (lambda: None) if overlap else None, **options})
    runner.run(chunks)
    return runner


def test_a_chunk_is_sampled_while_another_is_graded():
    log, written = Log(), []
    chunks = [
        chunk(0, log, grade=lambda: log.wait_for("sample 1.0")),
        chunk(1, log, sample=lambda: log.wait_for("grade 0.0")),
        chunk(2, log),
    ]
    runner = run(chunks, written)
    assert written == [[0], [1], [2]]
    assert 0 <= runner.sampling_seconds <= runner.seconds


def test_rounds_of_two_chunks_alternate_and_a_chunk_that_is_ready_early_is_written_in_its_place():
    log, written = Log(), []
    first = chunk(0, log, rounds=3, grade=lambda: log.wait_for("sample 1.0"))
    # The second chunk is complete after one round, and the first needs three.
    second = chunk(1, log, sample=lambda: log.wait_for("sample 0.0"))
    run([first, second, chunk(2, log)], written)
    assert written == [[0], [1], [2]]
    assert log.events.index("sample 1.0") < log.events.index("sample 0.1")
    assert log.events.index("grade 0.2") < log.events.index("sample 2.0")  # at most two chunks in progress


def test_without_overlap_everything_runs_in_the_calling_thread_and_in_order():
    log, written, threads = Log(), [], set()

    def record():
        threads.add(threading.current_thread())

    chunks = [chunk(index, log, rounds=2, sample=record, grade=record) for index in range(2)]
    runner = run(chunks, written, overlap=False)
    assert threads == {threading.current_thread()} and written == [[0], [1]]
    order = [f"{what} {index}.{turn}" for index in range(2) for turn in range(2) for what in ("sample", "grade")]
    assert log.events == order
    assert runner.sampling_seconds < runner.seconds


def test_sampling_is_done_by_the_calling_thread():
    log, threads = Log(), []
    chunks = [chunk(index, log, sample=lambda: threads.append(threading.current_thread())) for index in range(5)]
    run(chunks, [])
    assert threads == [threading.current_thread()] * 5


@pytest.mark.parametrize("error", [ValueError("no memory"), KeyboardInterrupt()])
def test_texts_that_are_sampled_are_graded_and_written_after_an_error(error):
    log, written = Log(), []

    def fail():
        log("failed")
        raise error

    chunks = [chunk(0, log, grade=lambda: log.wait_for("failed")), chunk(1, log, sample=fail)]
    with pytest.raises(type(error)):
        run(chunks, written)
    assert written == [[0]]
    assert not [thread for thread in threading.enumerate() if thread.name == "grading"]


def test_an_error_of_the_grading_is_raised_and_nothing_more_is_written():
    log, written = Log(), []

    def fail():
        raise RuntimeError("the function raised")

    chunks = [chunk(0, log), chunk(1, log, grade=fail), chunk(2, log), chunk(3, log)]
    with pytest.raises(RuntimeError, match="the function raised"):
        run(chunks, written)
    assert written == [[0]] and "sample 3.0" not in log.events


@pytest.mark.parametrize("overlap", [True, False])
def test_after_a_failed_write_no_other_chunk_follows(overlap):
    log, written = Log(), []

    def write(rows):
        written.append(rows)
        raise OSError("disk full")

    runner = OverlappedChunks(write, (lambda: None) if overlap else None)
    with pytest.raises(OSError, match="disk full"):
        runner.run(chunk(index, log) for index in range(3))
    assert written == [[0]]


def test_a_second_interrupt_cancels_the_grading(monkeypatch):
    log, written, cancelled = Log(), [], threading.Event()

    def grade():
        assert cancelled.wait(WAIT)
        raise RuntimeError("cancelled")

    def interrupt():
        raise KeyboardInterrupt

    join = threading.Thread.join

    def interrupted_join(thread, timeout=None):
        if thread.name == "grading":
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted_join)
    chunks = [chunk(0, log, grade=grade), chunk(1, log, sample=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        run(chunks, written, cancel=cancelled.set)
    assert cancelled.is_set() and written == []
