"""Tests adapters on disk: their configuration, and errors if their base model is missing."""

import json
import shutil

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from zoo import save_tiny, word_level

from erprm_trl.io.adapters import adapter_config, base_of_adapter


@pytest.fixture
def adapter(tmp_path):
    """An adapter in `adapter/` for the model in `base/`."""
    base = save_tiny(tmp_path / "base", word_level())
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_the_base_model_of_an_adapter_is_found(adapter, tmp_path, monkeypatch):
    assert adapter_config(str(tmp_path / "base")) is None
    config = adapter_config(adapter)
    assert base_of_adapter(adapter, config) == str(tmp_path / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base_of_adapter(adapter, {"base_model_name_or_path": "~/base"}) == str(tmp_path / "base")


@pytest.mark.parametrize("name", [None, "", "nobody/no-such-model", "/gone/base"])
def test_the_error_names_a_missing_base_model(name, adapter):
    with pytest.raises(FileNotFoundError, match=r"adapter: .*base_model_name_or_path=.*has moved"):
        base_of_adapter(adapter, {"base_model_name_or_path": name})


def test_both_remedies_for_a_moved_base_model_work(adapter, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "base", moved)
    config = adapter_config(adapter)
    with pytest.raises(FileNotFoundError, match="has moved"):
        base_of_adapter(adapter, config)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(moved), adapter, is_trainable=True)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(moved)}))
    assert base_of_adapter(adapter, adapter_config(adapter)) == str(moved)


def test_the_error_names_a_damaged_base_model(adapter, tmp_path):
    (tmp_path / "base" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"base: config.json is damaged"):
        base_of_adapter(adapter, adapter_config(adapter))
