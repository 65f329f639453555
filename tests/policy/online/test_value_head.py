"""The value head: an additional output of the policy's own forward pass, which is not exported with the policy."""

import pytest
import torch
from step_fakes import FakeScorer, by_text, questions, settings, tiny_llama, word_level

from erprm_trl.policy.online.step_config import StepPPOConfig
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer
from erprm_trl.policy.online.value_head import (
    VALUE_HEAD_FILE,
    ValueHead,
    attach_value_head,
    load_value_head,
    save_value_head,
    without_value_head,
)


def fill(head):
    with torch.no_grad():
        head.weight.copy_(torch.arange(1.0, 1.0 + head.weight.numel())[None] / 10)
        head.bias.fill_(0.5)


@pytest.fixture
def policy(tmp_path):
    """A policy with TRL's fused head and the trainer's value head."""
    trainer = StepPPOTrainer(
        tiny_llama(len(word_level())),
        [FakeScorer(by_text)],
        args=StepPPOConfig(**settings(tmp_path)),
        train_dataset=questions(4),
        processing_class=word_level(),
    )
    fill(trainer.value_head)
    return trainer.model.eval()


def test_initial_values_are_zero_and_float32():
    head = ValueHead(3)
    hidden = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]], dtype=torch.bfloat16)
    assert head(hidden).tolist() == [[0.0, 0.0]] and sum(weight.numel() for weight in head.parameters()) == 4
    fill(head)
    # 0.1 + 0.4 + 0.9 + 0.5 and 0.3 + 0.5. In bfloat16, the last would be 0.80078125.
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with context:
            values = head(hidden)
            assert values.dtype == torch.float32
            torch.testing.assert_close(values, torch.tensor([[1.9, 0.8]]), atol=1e-6, rtol=0)
    values = head.to(torch.bfloat16)(hidden)
    assert values.dtype == torch.float32


def test_values_belong_to_the_state_in_which_each_token_was_chosen(policy):
    ids = torch.tensor([[7, 8, 9, 10]])
    labels = ids.clone()
    output = policy(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    assert output.state_values.shape == output.log_probs.shape == (1, 3)
    for index in range(3):  # before token index + 1, the policy has read the tokens up to index
        hidden = policy.base_model(input_ids=ids[:, : index + 1]).last_hidden_state[0, -1]
        expected = (hidden * policy.value_head.weight[0]).sum() + policy.value_head.bias[0]
        torch.testing.assert_close(output.state_values[0, index], expected, atol=1e-5, rtol=1e-5)


def test_an_ordinary_forward_and_sampling_do_not_change(policy):
    plain = tiny_llama(len(word_level())).eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    output = policy(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert "state_values" not in output
    torch.testing.assert_close(output.logits, plain(input_ids=ids).logits)
    sampled = policy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert sampled.equal(plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False))


def test_no_hook_remains_on_the_base_model(policy):
    ids = torch.tensor([[7, 8, 9]])
    hooks = len(policy.base_model._forward_hooks)
    policy(input_ids=ids, labels=ids, fused_lm_head=True)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        policy(input_ids="nothing", labels=ids, fused_lm_head=True)
    assert len(policy.base_model._forward_hooks) == hooks


def test_without_value_head_removes_and_restores_it(policy):
    head = policy.value_head
    named = [name for name, _ in policy.named_parameters()]
    assert {"value_head.weight", "value_head.bias"} <= set(named)
    with without_value_head(policy):
        hidden = [name for name, _ in policy.named_parameters()]
        assert not any("value_head" in name for name in [*hidden, *policy.state_dict()])
        assert len(hidden) == len(named) - 2
    assert [name for name, _ in policy.named_parameters()] == named and policy.value_head is head
    with pytest.raises(RuntimeError, match="the sync failed"), without_value_head(policy):
        raise RuntimeError("the sync failed")
    assert [name for name, _ in policy.named_parameters()] == named and policy.value_head is head


def test_the_value_head_is_saved_and_loaded(tmp_path):
    policy = tiny_llama(len(word_level()))
    head = attach_value_head(policy)
    assert head.weight.shape == (1, policy.config.hidden_size)
    fill(head)
    save_value_head(head, str(tmp_path))
    other = ValueHead(policy.config.hidden_size)
    load_value_head(other, str(tmp_path))
    assert other.weight.equal(head.weight) and other.bias.equal(head.bias)
    with pytest.raises(FileNotFoundError, match=f"has no {VALUE_HEAD_FILE}"):
        load_value_head(other, str(tmp_path / "elsewhere"))


def test_the_policy_is_saved_without_the_value_head(tmp_path):
    from safetensors.torch import load_file

    policy = tiny_llama(len(word_level()))
    before = set(policy.state_dict())
    attach_value_head(policy)
    policy.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == before
    # Other policies of the same class are saved completely.
    assert not tiny_llama(8)._keys_to_ignore_on_save
