"""Tests the error for frozen models, and further training of saved adapters."""

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from zoo import save_tiny, tiny_llama, word_level

from erprm_trl.training.trainable import check_trainable, load_adapter


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter whose weights differ from the initial weights of a new adapter."""
    base = save_tiny(tmp_path / "base", word_level())
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.25)
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_a_saved_adapter_is_loaded_as_trainable(adapter, tmp_path):
    model = load_adapter(adapter, AutoModelForCausalLM.from_pretrained, subject="Trainer")
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert all((weight == 0.25).all() for name, weight in trainable.items() if "lora_B" in name)
    check_trainable(model, subject="Trainer")
    assert load_adapter(str(tmp_path / "base"), AutoModelForCausalLM.from_pretrained, subject="Trainer") is None


def test_a_saved_adapter_with_the_configuration_of_a_new_adapter_raises(adapter, tmp_path):
    def not_called(*arguments, **options):
        raise AssertionError("loads weights")

    new = LoraConfig(r=2)
    with pytest.raises(ValueError, match=r"Trainer: got the adapter .*adapter' together with `peft_config`"):
        load_adapter(adapter, not_called, subject="Trainer", peft_config=new)
    assert load_adapter(str(tmp_path / "base"), not_called, subject="Trainer", peft_config=new) is None


@pytest.mark.parametrize("prefix_projection", [False, True])
def test_a_saved_prefix_is_loaded_as_trainable(prefix_projection, tmp_path):
    base = save_tiny(tmp_path / "base", word_level())
    settings = {"num_virtual_tokens": 2, "prefix_projection": prefix_projection, "encoder_hidden_size": 8}
    new = PrefixTuningConfig(task_type="CAUSAL_LM", **settings)
    saved = get_peft_model(AutoModelForCausalLM.from_pretrained(base), new).eval()
    saved.save_pretrained(tmp_path / "adapter")
    model = load_adapter(str(tmp_path / "adapter"), AutoModelForCausalLM.from_pretrained, subject="Trainer")
    check_trainable(model, subject="Trainer")
    text = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3)}
    torch.testing.assert_close(model.eval()(**text).logits, saved(**text).logits)
    model.train()(**text).logits.sum().backward()
    trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all("prompt_encoder" in name and grad.norm() > 0 for name, grad in trained.items())


def test_frozen_weights_raise_and_the_remedies_in_the_message_work(adapter):
    model = tiny_llama(46).requires_grad_(False)
    with pytest.raises(ValueError, match=r"Trainer: every weight of the given LlamaForCausalLM is frozen \(model"):
        check_trainable(model, subject="Trainer")
    model.lm_head.requires_grad_(True)
    check_trainable(model, subject="Trainer")

    base = tiny_llama(46)
    frozen = PeftModel.from_pretrained(base, adapter)
    with pytest.raises(ValueError, match=r"(?s)the given PeftModelForCausalLM is frozen.*is_trainable=True"):
        check_trainable(frozen, subject="Trainer")
    check_trainable(PeftModel.from_pretrained(tiny_llama(46), adapter, is_trainable=True), subject="Trainer")


def test_the_error_names_a_frozen_part():
    model = tiny_llama(46)
    part = {"the output layer": model.lm_head}
    check_trainable(model, subject="Trainer", parts=part)
    model.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"every weight of the output layer is frozen \(weight\)"):
        check_trainable(model, subject="Trainer", parts=part)
