"""Tests that a reward model that is updated during the training of a policy is the same with two real processes (DDP,
ZeRO-2 and ZeRO-3) as with one, and that its run can be resumed."""

import importlib.util
import json

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


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A function that runs a trainer in one process, and returns its folder. Equal runs are cached."""
    done = {}

    def run(name, lora):
        if (name, lora) not in done:
            folder = tmp_path_factory.mktemp("single")
            distributed_runs.save_models(folder)
            distributed_runs.run(name, folder, lora=lora)
            done[name, lora] = folder
        return done[name, lora]

    return run


@pytest.mark.parametrize("launch", sorted(LAUNCHES))
def test_two_processes_update_the_reward_model_as_one(tmp_path, launch, single):
    config, names, lora = LAUNCHES[launch]
    if config != "cpu_ddp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    distributed_runs.save_models(tmp_path)
    path = distributed_runs.CONFIGS / f"{config}.yaml"
    facts = distributed_runs.launch(tmp_path, path, names, lora=lora, accumulation=1)
    for name in names:
        alone, second = single(name, lora), facts[name]
        assert "error" not in second, second["error"]
        first = json.loads((alone / name / "facts.json").read_text())
        assert (first["world"], second["world"]) == (1, 2)
        assert second["wrapper"] == ("DistributedDataParallel" if config == "cpu_ddp" else "DeepSpeedEngine")
        assert second["split"] == (config == "cpu_zero3")
        assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)
        for left, right in zip(first["metrics"], second["metrics"], strict=True):
            assert "reward_model/loss" in left and right == pytest.approx(left, abs=1e-3, rel=1e-3)
        assert any(log["reward_model/unused_share"] > 0 for log in first["metrics"])
        # Every process holds the whole reward model, also with ZeRO-3.
        assert second["scorer"] == first["scorer"]
        start = weights(alone / ("implicit_adapter" if lora else "implicit"))
        left, right, resumed = (
            weights(folder / name / kind / "reward_model")
            for folder, kind in ((alone, "model"), (tmp_path, "model"), (tmp_path, "resumed"))
        )
        assert left.keys() == right.keys() == start.keys()
        changes = [(left[key] - start[key]).abs().max().item() for key in left]
        assert max(changes) > 1e-3
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, atol=1e-4, rtol=0)
            torch.testing.assert_close(resumed[key], right[key], atol=1e-6, rtol=0)
        # The policies are equal, too.
        for key, value in distributed_runs.weights(alone / name).items():
            torch.testing.assert_close(
                distributed_runs.weights(tmp_path / name)[key].float(), value.float(), atol=1e-3, rtol=0
            )


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))
