"""Tests the formula for ZeRO's parts of weights, gradients and optimizer states against two real DeepSpeed
processes."""

import importlib.util
import json

import pytest
import zero_memory_run
from forked_launch import launch_with_accelerate
from transformers import AutoConfig

from erprm_trl import dial
from erprm_trl.functional import Architecture, count_parameters, state_bytes
from erprm_trl.memory.training import LIVE_WEIGHTS, REDUCE_BUCKET


pytestmark = pytest.mark.slow("starts two processes with DeepSpeed")


YAML = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: {stage}
  zero3_init_flag: false
  deepspeed_multinode_launcher: standard
machine_rank: 0
num_machines: 1
num_processes: 2
mixed_precision: "{mixed_precision}"
use_cpu: true
"""


# One launch per stage. Stage 2 uses float32, where DeepSpeed also keeps copies of the weights
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize(("stage", "precision"), [(1, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_two_processes_use_the_memory_of_the_formula(tmp_path, stage, precision):
    mixed_precision = "bf16" if precision == "bfloat16" else "no"
    (tmp_path / "zero.yaml").write_text(YAML.format(stage=stage, mixed_precision=mixed_precision))
    launch_with_accelerate(tmp_path / "zero.yaml", zero_memory_run.main, tmp_path, precision)
    architecture = Architecture.from_config(AutoConfig.from_pretrained(dial.BASE_PATH))
    expected = state_bytes(count_parameters(architecture), precision=precision, zero_stage=stage, num_gpus=2)
    largest = max(inputs * outputs for inputs, outputs in architecture.linears().values())
    for rank in range(2):
        facts = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert (facts["world"], facts["type"], facts["stage"]) == (2, "DEEPSPEED", stage)
        assert facts["engine"] == {3: "DeepSpeedZeroOptimizer_Stage3"}.get(stage, "DeepSpeedZeroOptimizer")
        if stage == 2:  # the gradient at the border between the two parts is complete on both processes
            assert 0 <= facts.pop("gradients") - expected["gradients"] <= 4 * largest
        for name in expected.keys() & facts.keys():
            # The parts are padded to the same number of elements on every process
            assert expected[name] == pytest.approx(facts[name], rel=0.001), name
        assert facts["reduce_bucket"] == REDUCE_BUCKET
        assert facts["overlap"] == (stage == 3)
        assert facts["live_weights"] == LIVE_WEIGHTS
