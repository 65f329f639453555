"""A limit for code that must not take quadratic or exponential time on hostile input."""

import time
from contextlib import contextmanager


@contextmanager
def limited_processor_time(seconds=30):
    """
    Fails if the block takes more processor time of this thread. The limit is far above linear time on a busy machine,
    where processor time grows too, and far below quadratic time, so choose an input for which that is minutes.
    """
    start = time.thread_time()
    yield
    used = time.thread_time() - start
    assert used < seconds, f"{used:.1f} s of processor time"
