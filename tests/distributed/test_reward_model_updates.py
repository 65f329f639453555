"""Tests that a reward model that is updated during the training of a policy is the same with two real processes (DDP,
ZeRO-2 and ZeRO-3) as with one, and that its run can be resumed."""

import importlib.util

import distributed_runs
import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.slow("starts two processes")

GRPO, PPO = distributed_runs.NAMES_OF_UPDATES
# Each launch: its configuration, its trainers, and whether the policy and the reward model are adapters
LAUNCHES = {
    "ddp": ("cpu_ddp", (GRPO, PPO), False),
    "zero2-lora": ("cpu_zero2", (GRPO,), True),
    "zero3": ("cpu_zero3", (GRPO,), False),
}


@pytest.mark.parametrize("launch", sorted(LAUNCHES))
def test_two_processes_update_the_reward_model_as_one(tmp_path, launch, single):
    config, names, lora = LAUNCHES[launch]
    if config != "cpu_ddp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    distributed_runs.save_models(tmp_path)
    path = distributed_runs.CONFIGS / f"{config}.yaml"
    facts = distributed_runs.launch(tmp_path, path, names, lora=lora, accumulation=1)
    for name in names:
        second, (alone, first) = facts[name], single(name, lora=lora)
        assert "error" not in second, second["error"]
        assert (first["world"], second["world"]) == (1, 2)
        assert second["wrapper"] == ("DistributedDataParallel" if config == "cpu_ddp" else "DeepSpeedEngine")
        assert second["split"] == (config == "cpu_zero3")
        assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)
        for left, right in zip(first["metrics"], second["metrics"], strict=True):
            assert "reward_model/loss" in left and right == pytest.approx(left, abs=1e-3, rel=1e-3)
        assert any(log["reward_model/unused_share"] > 0 for log in first["metrics"])
        # Every process holds the whole reward model, also with ZeRO-3.
        assert second["scorer"] == first["scorer"]
        start = weights(alone.parent / ("implicit_adapter" if lora else "implicit"))
        left, right, resumed = (
            weights(folder / kind / "reward_model")
            for folder, kind in ((alone, "model"), (tmp_path / name, "model"), (tmp_path / name, "resumed"))
        )
        assert left.keys() == right.keys() == start.keys()
        changes = [(left[key] - start[key]).abs().max().item() for key in left]
        assert max(changes) > 1e-3
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, atol=1e-4, rtol=0)
            torch.testing.assert_close(resumed[key], right[key], atol=1e-6, rtol=0)
        # The policies are equal, too.
        for key, value in distributed_runs.weights(alone).items():
            torch.testing.assert_close(
                distributed_runs.weights(tmp_path / name)[key].float(), value.float(), atol=1e-3, rtol=0
            )


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))
