"""Tests that every trainer with two real processes (DDP, ZeRO-2 and ZeRO-3) gives the same results as with one
process."""

import importlib.util
import json
from pathlib import Path

import distributed_runs
import pytest
import torch
import yaml

from erprm_trl import StepScorer


pytestmark = pytest.mark.slow("starts two processes")


NAMES, OUTCOME = distributed_runs.NAMES, distributed_runs.OUTCOME
REFRESH = {
    "refresh_reward_model": 4,
    "refresh_num_continuations": 2,
    "refresh_learning_rate": 1e-2,
    "trained_eta": 0.0,
}
# Each launch runs its trainers one after the other: configuration, trainers, and options of their runs
LAUNCHES = {
    "ddp": ("cpu_ddp", (*NAMES, OUTCOME), {"accumulation": 1}),
    "ddp-lora": ("cpu_ddp", ("erprm_lm", "erprm_implicit", "raft", "step_ppo"), {"lora": True}),
    "ddp-raft-refresh": ("cpu_ddp", ("raft",), {"accumulation": 1, "raft": REFRESH}),
    "ddp-raft-engines": ("cpu_ddp", ("raft",), {"accumulation": 1, "lora": True, "raft": {"use_vllm": True}}),
    "zero2": ("cpu_zero2", ("erprm_lm", "raft", "step_ppo"), {}),
    "zero3": ("cpu_zero3", NAMES, {}),
    "zero3-lora-sharded": ("cpu_zero3", ("erprm_lm", "raft", "step_grpo"), {"lora": True, "sharded": True}),
    "zero3-offload": ("cpu_zero3", ("erprm_lm", "step_grpo"), {"optim": "adamw_torch"}),
}
SCORED = (["Tom dial 3 . right 15 . ?"] * 2, [["3 + 15 = 18", "answer 18"], ["3 + 15 = 4"]])


@pytest.fixture(scope="module", params=sorted(LAUNCHES))
def double(request, tmp_path_factory):
    """The results of every trainer of a launch with two processes."""
    config, names, options = LAUNCHES[request.param]
    if config != "cpu_ddp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    distributed_runs.save_models(folder)
    path = distributed_runs.CONFIGS / f"{config}.yaml"
    if request.param == "zero3-offload":
        settings = yaml.safe_load(path.read_text())
        settings["deepspeed_config"].update(offload_optimizer_device="cpu", offload_param_device="cpu")
        path = folder / "offload.yaml"
        path.write_text(yaml.safe_dump(settings))
    return folder, config, options, distributed_runs.launch(folder, path, names, **options)


@pytest.mark.parametrize("name", [*NAMES, OUTCOME])
def test_two_processes_give_the_same_results_as_one(name, single, double):
    folder, config, options, facts = double
    if name not in facts:
        pytest.skip("this launch does not run the trainer")
    second, (alone, first) = facts[name], single(name, **options)
    assert "error" not in second, second["error"]

    # A wrong configuration could silently use one process, or wrap no model.
    assert (first["world"], second["world"]) == (1, 2)
    assert second["type"] == ("MULTI_CPU" if config == "cpu_ddp" else "DEEPSPEED")
    assert second["wrapper"] == ("DistributedDataParallel" if config == "cpu_ddp" else "DeepSpeedEngine")
    assert second["split"] == (config == "cpu_zero3")

    assert len(first["losses"]) == len(second["losses"]) == distributed_runs.UPDATES
    assert second["losses"][0] == pytest.approx(first["losses"][0], abs=1e-5)
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)
    assert any(first["metrics"]) or name == "raft"
    for left, right in zip(first["metrics"], second["metrics"], strict=True):
        if options.get("accumulation") != 1:  # these two metrics are means over the means of batches
            left, right = ({key: log[key] for key in log if key not in ("kl", "value/loss")} for log in (left, right))
        assert right == pytest.approx(left, abs=1e-3)
    if "eval" in first:
        assert second["eval"] == pytest.approx(first["eval"], abs=1e-4)

    # The file contains all weights of the engine, and they equal the weights of one process.
    saved = second["saved_against_live"]
    assert saved["compared"] == saved["of"] and saved["largest"] == 0
    left, right = distributed_runs.weights(alone), distributed_runs.weights(folder / name)
    assert left.keys() == right.keys() and not any("value_head" in key for key in right)
    assert_close(left, right, 1e-3)

    if name == "raft":
        assert_same_picks(alone, folder / name)
        if "refresh_reward_model" in options.get("raft", {}):
            assert_same_reward_models(alone, folder / name)
    else:
        # DeepSpeed's Adam on the host rounds differently after resuming.
        tolerance = 1e-6 if options.get("optim", "sgd") == "sgd" else 2e-5
        assert second["resumed_losses"] == pytest.approx(
            second["losses"][distributed_runs.RESUMED_AT :], abs=tolerance
        )
        assert_close(right, distributed_runs.weights(folder / name, "resumed"), tolerance)
    if name.startswith("erprm"):
        scores = [StepScorer.from_pretrained(run / "model").score(*SCORED) for run in (alone, folder / name)]
        assert sum(scores[1], []) == pytest.approx(sum(scores[0], []), abs=1e-3)
    else:
        whole = first["scorer"]["held"]
        expected = ("ShardedBackend", whole // 2) if options.get("sharded") else ("LocalBackend", whole)
        assert (second["scorer"]["backend"], second["scorer"]["held"]) == expected


@pytest.mark.parametrize(
    ("name", "lora"), [*((name, lora) for lora in (False, True) for name in NAMES if name != "raft"), (OUTCOME, False)]
)
def test_a_resumed_run_exactly_equals_the_uninterrupted_run(name, lora, single):
    folder, facts = single(name, lora=lora)
    assert facts["resumed_losses"] == facts["losses"][distributed_runs.RESUMED_AT :]
    uninterrupted, resumed = (distributed_runs.weights(folder, kind) for kind in ("model", "resumed"))
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)


def assert_close(left, right, tolerance):
    for key, value in left.items():
        torch.testing.assert_close(right[key].float(), value.float(), atol=tolerance, rtol=0)


def assert_same_reward_models(alone, together):
    for index in range(2):
        left, right = (run / f"round-{index}" for run in (alone, together))
        records = [json.loads((path / "manifest.json").read_text())["refresh"]["metrics"] for path in (left, right)]
        assert records[1] == pytest.approx(records[0], abs=1e-4) and records[0]["refresh/updates"] >= 2
        weights = [distributed_runs.weights(path, "reward_model") for path in (left, right)]
        assert_close(*weights, 1e-4)
    first = distributed_runs.weights(together.parent, "reward_model")
    assert any(not torch.equal(first[key], weights[1][key]) for key in first)


def assert_same_picks(alone, together):
    shards = sorted(path.name for path in (together / "round-0" / "samples").glob("*.jsonl"))
    assert shards == ["rollouts-00000.jsonl", "rollouts-00001.jsonl"]
    for index in range(2):
        left, right = (
            [json.loads(line) for line in Path(run, f"round-{index}", "picks.jsonl").open()]
            for run in (alone, together)
        )
        assert [pick.pop("score") for pick in right] == pytest.approx([pick.pop("score") for pick in left], abs=1e-5)
        assert right == left
    weights = distributed_runs.weights(together / "round-1", "policy")
    assert_close(weights, distributed_runs.weights(together), 0)
