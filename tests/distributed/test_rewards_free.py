"""Tests that policies without a reward model, trained by two real processes (DDP and ZeRO-3), equal those of one."""

import importlib.util

import distributed_runs
import pytest
import torch


pytestmark = pytest.mark.slow("starts two processes")

# Each launch: its configuration, its trainers, and options of their runs
LAUNCHES = {
    "ddp": ("cpu_ddp", ("log_ratio", "monte_carlo"), {}),
    "ddp-lora": ("cpu_ddp", ("log_ratio",), {"lora": True}),
    "zero3": ("cpu_zero3", ("log_ratio", "monte_carlo"), {}),
}


@pytest.mark.parametrize("launch", sorted(LAUNCHES))
def test_two_processes_give_the_same_results_as_one(launch, single, tmp_path):
    config, names, options = LAUNCHES[launch]
    if config != "cpu_ddp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    distributed_runs.save_models(tmp_path)
    path = distributed_runs.CONFIGS / f"{config}.yaml"
    for name, second in distributed_runs.launch(tmp_path, path, names, **options).items():
        assert "error" not in second, second["error"]
        alone, first = single(name, **options)
        assert (first["world"], second["world"]) == (1, 2)
        assert second["type"] == ("MULTI_CPU" if config == "cpu_ddp" else "DEEPSPEED")
        assert second["split"] == (config == "cpu_zero3")
        assert second["losses"] == pytest.approx(first["losses"], abs=1e-4)
        for left, right in zip(first["metrics"], second["metrics"], strict=True):
            if name == "monte_carlo":  # the KL of the loss is a mean over the means of batches
                left, right = ({key: log[key] for key in log if key != "kl"} for log in (left, right))
            assert right == pytest.approx(left, abs=1e-4)
        assert first["metrics"][-1]["kl"] > 1e-6
        assert second["resumed_losses"] == pytest.approx(second["losses"][distributed_runs.RESUMED_AT :], abs=1e-6)
        left, right = distributed_runs.weights(alone), distributed_runs.weights(tmp_path / name)
        for key, value in left.items():
            torch.testing.assert_close(right[key].float(), value.float(), atol=1e-4, rtol=0)
