"""Runs of one process, with which the tests compare two processes."""

import distributed_runs
import pytest


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return distributed_runs.single_runs(tmp_path_factory.mktemp)
