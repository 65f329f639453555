"""Fixtures of the tests of RAFT."""

import pytest

from erprm_trl.rollouts import collect


@pytest.fixture(scope="module")
def no_grading_processes():
    """Compares answers in the test's process, because starting the workers takes longer than the rest of a round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "comparison_method", lambda name: lambda predicted, answer: float(predicted == answer))
        yield
