"""A grading function that takes some time per answer without using the processor, as a verifier on another machine
does."""

import os
import time


MILLISECONDS = "SLOW_GRADING_MILLISECONDS"  # environment variable, which workers inherit


def slow(completion: str, answer: str) -> float:
    """1 if the text ends with the right answer, after a while."""
    time.sleep(float(os.environ.get(MILLISECONDS, "4")) / 1000)
    return float(completion.split()[-2:] == ["answer", answer])
