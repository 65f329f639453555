"""Accelerate can read all launch configurations, including those that cannot run on this machine."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig


FILES = sorted(Path(__file__).parents[2].joinpath("accelerate_configs").glob("*.yaml"))
# distributed type, ZeRO stage, machines, processes
EXPECTED = {
    "single_gpu": ("NO", None, 1, 1),
    "multi_gpu": ("MULTI_GPU", None, 1, 8),
    "zero1": ("DEEPSPEED", 1, 1, 8),
    "zero2": ("DEEPSPEED", 2, 1, 8),
    "zero3": ("DEEPSPEED", 3, 1, 8),
    "zero3_offload": ("DEEPSPEED", 3, 1, 8),
    "fsdp2": ("FSDP", None, 1, 8),
    "multi_node_zero3": ("DEEPSPEED", 3, 2, 16),
    "cpu_ddp": ("MULTI_GPU", None, 1, 2),  # MULTI_CPU runs one process
    "cpu_zero2": ("DEEPSPEED", 2, 1, 2),
    "cpu_zero3": ("DEEPSPEED", 3, 1, 2),
}


def test_every_configuration_is_tested():
    assert {path.stem for path in FILES} == set(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_configuration(path):
    config = ClusterConfig.from_yaml_file(str(path))  # unknown keys are errors
    deepspeed = config.deepspeed_config or {}
    kind, stage, machines, processes = EXPECTED[path.stem]
    assert (config.distributed_type.value, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert deepspeed.get("zero_stage") == stage
    assert config.use_cpu == path.stem.startswith("cpu_")
    assert config.mixed_precision == ("no" if config.use_cpu else "bf16")
    # Without it, ZeRO-3 saves placeholders instead of weights.
    assert deepspeed.get("zero3_save_16bit_model", False) == (stage == 3)
    assert deepspeed.get("offload_param_device", "none") == ("cpu" if "offload" in path.stem else "none")
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
