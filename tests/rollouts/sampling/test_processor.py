"""Tests of the dtype and the number of threads on a CPU."""

import shutil

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model

from erprm_trl import dial
from erprm_trl.rollouts.sampling import default_dtype, processor


@pytest.fixture
def with_bfloat16(monkeypatch):
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(processor, "LEAST_HIDDEN_SIZE", 64)  # the hidden size of the dial policy


def settings(**changes):
    return {"model_name_or_path": dial.BASE_PATH, "model_init_kwargs": None, **changes}


def test_large_float32_policies_sample_in_bfloat16_where_the_processor_has_it(with_bfloat16, monkeypatch, caplog):
    caplog.set_level("INFO")
    assert default_dtype(settings()) == "bfloat16"
    assert "Set dtype='float32' to sample from the unrounded weights." in caplog.text
    assert default_dtype(settings(model_name_or_path="erprm_trl/dial/base", backend="transformers")) == "bfloat16"
    for changes in (
        {"backend": "vllm"},
        {"model_init_kwargs": {"dtype": "float32"}},
        {"model_init_kwargs": {"quantization_config": {}}},
        {"model_name_or_path": "a/model-that-does-not-exist"},  # loading it raises the error
    ):
        assert default_dtype(settings(**changes)) is None
    monkeypatch.setattr(processor, "LEAST_HIDDEN_SIZE", 65)
    assert default_dtype(settings()) is None
    monkeypatch.setattr(processor, "LEAST_HIDDEN_SIZE", 64)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert default_dtype(settings()) is None


def test_the_checkpoint_of_an_adapter_and_other_dtypes(with_bfloat16, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "LEAST_HIDDEN_SIZE", 1)
    model = zoo.tiny_llama(46)
    model.save_pretrained(tmp_path / "base")
    model.config.name_or_path = model.name_or_path = str(tmp_path / "base")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert default_dtype(settings(model_name_or_path=str(tmp_path / "adapter"))) == "bfloat16"
    shutil.rmtree(tmp_path / "base")
    zoo.tiny_llama(46).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    assert default_dtype(settings(model_name_or_path=str(tmp_path / "base"))) is None


def test_without_bfloat16_the_dtype_of_the_checkpoint_stays(monkeypatch):
    monkeypatch.setattr(processor, "LEAST_HIDDEN_SIZE", 1)
    for capabilities, expected in (
        ({"avx512_bf16": False, "amx_bf16": False}, None),
        ({}, None),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert default_dtype(settings()) == expected


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "1600000 100000\n"}, 8),
    ],
)
def test_cores_within_the_quota_of_a_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(processor, "CGROUP", tmp_path)
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor.usable_cores() == cores


def test_threads_are_limited_to_the_cores_of_a_process(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(processor, "usable_cores", lambda: 6)
    processor.limit_threads()  # the tests set OMP_NUM_THREADS
    assert counts == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    processor.limit_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    processor.limit_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    processor.limit_threads()
    assert counts == [6, 3, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    processor.limit_threads()
    assert counts == [6, 3, 1]
