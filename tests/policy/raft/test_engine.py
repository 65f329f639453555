"""RAFT with vLLM: which policy the engines load, what their processes see, and what is refused. The engine is replaced
by transformers with the saved policy."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from fake_engines import FakeOfflineEngine
from peft import LoraConfig, PrefixTuningConfig
from raft_runs import DIAL
from safetensors.torch import load_file

from erprm_trl import StepScorer, dial
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.policy.raft import policy_sampler, raft_trainer
from erprm_trl.policy.raft.engine import check_engine, engine_environment
from erprm_trl.policy.raft.raft_config import RAFTConfig
from erprm_trl.policy.raft.raft_trainer import RAFTTrainer
from erprm_trl.policy.raft.rounds import read_rows


ROWS = dial.make_questions(8, seed=1)
pytestmark = pytest.mark.usefixtures("no_grading_processes")
SETTINGS = {**DIAL, "learning_rate": 1e-2}
LORA = LoraConfig(r=2, target_modules="all-linear")


@pytest.fixture(scope="module")
def scorer():
    return StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT, batch_size=256)


@pytest.fixture
def build(tmp_path, scorer):
    def build(name="out", peft_config=None, rows=ROWS, **options):
        args = RAFTConfig(str(tmp_path / name), **{**SETTINGS, **options})
        return RAFTTrainer(dial.BASE_PATH, scorer, args, Dataset.from_list(rows), peft_config=peft_config)

    return build


@pytest.fixture
def engines(monkeypatch):
    """The folders that engines loaded. No engine may be alive when a training begins."""
    monkeypatch.setattr(FakeOfflineEngine, "started", [])
    monkeypatch.setattr(policy_sampler, "VLLMSampler", FakeOfflineEngine)
    train = raft_trainer.SFTTrainer.train

    def train_alone(self, *arguments):
        assert not FakeOfflineEngine.alive
        return train(self, *arguments)

    monkeypatch.setattr(raft_trainer.SFTTrainer, "train", train_alone)
    return FakeOfflineEngine.started


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.slow("trains several rounds")
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_engines_sample_from_each_rounds_policy_and_are_freed(build, engines, tmp_path, peft_config):
    trainer = build("engine", peft_config, use_vllm=True, vllm_kwargs='{"seed": 3}')
    trainer.evaluate(Dataset.from_list(ROWS[:1]))
    assert FakeOfflineEngine.alive[0].engine_kwargs == {"seed": 3}
    trainer.train()
    folders = ["first-policy", "round-0/policy"] if peft_config is None else ["merged-policy"] * 2
    assert engines == [str(tmp_path / "engine" / folder) for folder in folders]
    assert not FakeOfflineEngine.alive
    live = build("live", peft_config)
    live.train()
    for index in range(2):
        left, right = (read_rows(tmp_path / name / f"round-{index}" / "picks.jsonl") for name in ("engine", "live"))
        assert [pick["completion_ids"] for pick in left] == [pick["completion_ids"] for pick in right]
    # Merging leaves the policy itself unchanged.
    expected, found = weights(live), weights(trainer)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow("trains a round")
def test_the_merged_policy_has_the_logits_of_the_adapted_policy(build, tmp_path):
    trainer = build("out", LORA, num_rounds=1)
    trainer.train()
    path = trainer._policy._folder_of_engine()
    merged = load_file(Path(path, "model.safetensors"))
    assert not any("lora" in name for name in merged)
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([trainer.processing_class(ROWS[0]["question"])["input_ids"]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path).eval()(ids).logits
        expected = trainer.model.eval()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).eval()(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (logits - base).abs().max() > 1e-2


def accelerator(num_processes, device):
    return SimpleNamespace(num_processes=num_processes, device=torch.device(device))


@pytest.mark.parametrize(
    ("num_processes", "device", "visible", "expected"),
    [
        (1, "cuda:0", None, None),  # a single process may use all devices
        (1, "cuda:0", "2,3", "2,3"),
        (4, "cuda:1", None, "1"),
        (4, "cuda:1", "2,3", "3"),  # device 1 of the process is the second visible one
        (2, "cpu", None, None),
        (2, "cpu:1", None, None),
    ],
)
def test_an_engine_sees_one_device_and_no_launcher(monkeypatch, num_processes, device, visible, expected):
    platform = SimpleNamespace(device_control_env_var="FAKE_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    if visible is not None:
        monkeypatch.setenv("FAKE_VISIBLE_DEVICES", visible)
    before = dict(os.environ)
    with engine_environment(accelerator(num_processes, device)):
        assert os.environ.get("FAKE_VISIBLE_DEVICES") == expected
        hidden = {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "GROUP_RANK"}
        assert dict(os.environ).keys() - {"FAKE_VISIBLE_DEVICES"} == before.keys() - hidden - {"FAKE_VISIBLE_DEVICES"}
    assert dict(os.environ) == before


def test_the_environment_comes_back_after_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError), engine_environment(accelerator(1, "cpu")):
        raise RuntimeError
    assert os.environ["RANK"] == "1"


def test_policies_without_an_engine_are_refused_by_name(build, monkeypatch):
    build("lora", LORA, use_vllm=True)
    prefix = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="PEFT's type PREFIX_TUNING, which cannot be merged"):
        build("prefix", prefix, use_vllm=True)
    trainer = build("quantized", LORA)
    monkeypatch.setattr(trainer.model.get_base_model(), "is_quantized", True, raising=False)
    with pytest.raises(ValueError, match="an adapter on a quantized model"):
        check_engine(trainer)


def test_engines_of_several_processes_use_one_device_each():
    args = SimpleNamespace(vllm_kwargs={"tensor_parallel_size": 2})
    trainer = SimpleNamespace(args=args, model=None, accelerator=accelerator(4, "cpu"))
    with pytest.raises(ValueError, match="'tensor_parallel_size': 2.* with 4 processes, expected 1 for each"):
        check_engine(trainer)
    trainer.accelerator = accelerator(1, "cpu")
    check_engine(trainer)
    trainer.accelerator, args.vllm_kwargs = accelerator(4, "cpu"), None
    check_engine(trainer)


def test_an_adapter_with_partitioned_weights_is_refused():
    model = SimpleNamespace(peft_config={}, merge_and_unload=None, get_base_model=SimpleNamespace)
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    args = SimpleNamespace(vllm_kwargs=None)
    trainer = SimpleNamespace(args=args, model=model, accelerator=SimpleNamespace(num_processes=2, state=state))
    with pytest.raises(ValueError, match="an adapter with ZeRO-3, whose partitioned weights cannot be merged"):
        check_engine(trainer)
    state.deepspeed_plugin.zero_stage = 2
    check_engine(trainer)
