"""Sets the environment of all tests (offline, quiet, one thread) before transformers and torch are imported. Fails
tests without the marker `slow` that start processes."""

import gc
import os
import subprocess
from pathlib import Path
from unittest import mock


ROOT = Path(__file__).parents[1]
os.environ.update(
    HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"),  # `make test-real` may fetch its model
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    WANDB_MODE="disabled",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TORCHINDUCTOR_COMPILE_THREADS="1",  # with torch 2.8, `import deepspeed` would start compile workers
    # Processes that tests start must find the package and the helpers, too.
    PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]),
)

import pytest
from hypothesis import settings


# No deadline, because an example may take long on a busy machine.
settings.register_profile("tests", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("tests")
# For a long run by hand: `pytest --hypothesis-profile=thorough FILE`.
settings.register_profile("thorough", max_examples=8000, deadline=None)


GRADING_WORKER = "erprm_trl.rollouts.grading.worker"
LAUNCHERS = ("python", "torchrun", "accelerate", "deepspeed", "chrom")


class NoProcess(subprocess.Popen):
    """Replaces `subprocess.Popen` in tests without the marker `slow`. Only grading workers may start."""

    def __init__(self, args, *rest, **options):
        command = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        words = " ".join(os.fsdecode(word) for word in command)
        if Path(words.split()[0]).name.startswith(LAUNCHERS) and GRADING_WORKER not in words:
            pytest.fail(f'A test without a marker starts a process ({words}). Mark it: pytest.mark.slow("why").')
        super().__init__(args, *rest, **options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Replaces `subprocess.Popen` during an unmarked test and the setup of its fixtures."""
    if item.get_closest_marker("slow"):
        return (yield)
    with mock.patch.object(subprocess, "Popen", NoProcess):
        return (yield)


@pytest.hookimpl
def pytest_collection_modifyitems(items):
    """Checks that every marker `slow` has a reason, and that the names of tests are the same in all processes. Files
    with slow tests come first, so that pytest's processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: got an address in the name of a test. Give the parameter an id.")
        marker = item.get_closest_marker("slow")
        if marker and not (len(marker.args) == 1 and isinstance(marker.args[0], str)):
            raise pytest.UsageError(f'{item.nodeid}: got slow without a reason. Write pytest.mark.slow("why").')


@pytest.hookimpl
def pytest_collection_finish():
    """Excludes the permanent objects of torch and transformers from garbage collection, which saves a seventh of the
    time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def dial_policy():
    """The shipped policy and its tokenizer."""
    from zoo import load_dial_policy

    return load_dial_policy()


@pytest.fixture(scope="session")
def dial_format():
    """The format of the reward model for dial."""
    from erprm_trl import PRMFormat, dial

    return PRMFormat(
        separator=dial.SEPARATOR,
        good_token=dial.GOOD_MARK,
        bad_token=dial.BAD_MARK,
        prompt_template="check {question}",
        splitter=dial.SEPARATOR,
    )
