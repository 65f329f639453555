"""Tests with a real vLLM on the CPU. `make test-vllm` runs each file in a separate process. Without vLLM, no test is
collected."""

import functools
import importlib.util
import os

import pytest


collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]

if not collect_ignore_glob:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_CI_ENV="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
    )


@pytest.fixture
def colocated_engine(monkeypatch):
    """
    Makes TRL's engines compute in float32 and accept new weights.

    vLLM's CPU backend packs the weights of linear layers after loading, and then cannot load new weights. On a GPU,
    this is not needed.
    """
    import torch
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    def keep_weights(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", keep_weights)
    monkeypatch.setattr(vllm_generation, "LLM", functools.partial(vllm_generation.LLM, dtype="float32"))


@pytest.fixture(scope="session")
def dial_scorer(dial_format):
    """The shipped policy as a reward model."""
    from erprm_trl import StepScorer, dial

    return StepScorer.from_pretrained(dial.BASE_PATH, prm_format=dial_format)
