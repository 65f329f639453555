"""Tests loading tokenizers, and the error if a package is missing."""

import importlib.util

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from zoo import byte_level_bpe, save_tiny

from erprm_trl.io import load_tokenizer
from erprm_trl.rollouts import Prompt, TransformersSampler


def test_the_error_names_the_missing_package_sentencepiece(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "erprm_trl.io.tokenizers.find_spec", lambda name: None if name == "sentencepiece" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"tokenizer\.model.*pip install sentencepiece"):
        load_tokenizer(tmp_path)


def test_other_failures_keep_their_own_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception) as failure:
        load_tokenizer(tmp_path)
    assert "sentencepiece" not in str(failure.value)


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    byte_level_bpe().save_pretrained(tmp_path / "model")
    assert load_tokenizer("~/model").encode("\n") == byte_level_bpe().encode("\n")


def test_an_adapter_without_a_tokenizer_uses_the_tokenizer_of_its_base_model(tmp_path):
    save_tiny(tmp_path / "base", byte_level_bpe())
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(target_modules="all-linear")
    )
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tokenizer_config.json").exists()
    assert load_tokenizer(tmp_path / "adapter", revision=None).encode("12 + 3") == byte_level_bpe().encode("12 + 3")
    sampler = TransformersSampler.from_pretrained(tmp_path / "adapter", max_new_tokens=2)
    assert sampler.sample([Prompt("12")], 1, 0)[0][0].num_tokens in (1, 2)
