"""Offline, quiet, one thread: set before anything imports transformers or torch."""

import os
from pathlib import Path


ROOT = Path(__file__).parents[1]
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    WANDB_MODE="disabled",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    # Processes that tests start find the package and the helpers as the tests do.
    PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]),
)

import pytest
from hypothesis import settings


# An example may take its time on a busy machine.
settings.register_profile("tests", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("tests")
# For a long run by hand: `pytest --hypothesis-profile=thorough FILE`.
settings.register_profile("thorough", max_examples=8000, deadline=None)


@pytest.fixture(scope="session")
def dial_policy():
    """The shipped policy and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from erprm_trl import dial

    return AutoModelForCausalLM.from_pretrained(dial.BASE_PATH), AutoTokenizer.from_pretrained(dial.BASE_PATH)


@pytest.fixture(scope="session")
def dial_format():
    """The reward model's format on dial."""
    from erprm_trl import PRMFormat, dial

    return PRMFormat(
        separator=dial.SEPARATOR,
        good_token=dial.GOOD_MARK,
        bad_token=dial.BAD_MARK,
        prompt_template="check {question}",
        splitter=dial.SEPARATOR,
    )
