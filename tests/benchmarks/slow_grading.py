"""A grading function that takes 4 ms per answer without using the processor, as a verifier on another machine does."""

import time


SECONDS = 0.004


def slow(completion: str, answer: str) -> float:
    """1 if the text ends with the right answer, after a while."""
    time.sleep(SECONDS)
    return float(completion.split()[-2:] == ["answer", answer])
