"""Tests that a reward model that is updated during the training of a policy is the same with two real processes as
with one, and that its run can be resumed."""

import json

import distributed_runs
import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.slow("starts two processes")

GRPO, PPO = distributed_runs.NAMES_OF_UPDATES


@pytest.mark.parametrize(("lora", "names"), [(False, (GRPO, PPO)), (True, (GRPO,))], ids=["full", "lora"])
def test_two_processes_update_the_reward_model_as_one(tmp_path, lora, names):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
        distributed_runs.save_models(folder)
    config = distributed_runs.CONFIGS / "cpu_ddp.yaml"
    facts = distributed_runs.launch(together, config, names, lora=lora, accumulation=1)
    for name in names:
        distributed_runs.run(name, alone, lora=lora)
        first, second = json.loads((alone / name / "facts.json").read_text()), facts[name]
        assert "error" not in second, second["error"]
        assert (first["world"], second["world"]) == (1, 2)
        assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)
        for left, right in zip(first["metrics"], second["metrics"], strict=True):
            assert "reward_model/loss" in left and right == pytest.approx(left, abs=1e-3, rel=1e-3)
        assert any(log["reward_model/unused_share"] > 0 for log in first["metrics"])
        start = weights(alone / ("implicit_adapter" if lora else "implicit"))
        left, right, resumed = (
            weights(folder / name / kind / "reward_model")
            for folder, kind in ((alone, "model"), (together, "model"), (together, "resumed"))
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
                distributed_runs.weights(together / name)[key].float(), value.float(), atol=1e-3, rtol=0
            )


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))
