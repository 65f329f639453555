"""Tests the implicit reward against its definition in plain Python."""

import math

import pytest
import torch

from erprm_trl.functional import implicit_reward, selected_log_probs, step_log_prob_sums
from erprm_trl.functional.implicit_rewards import CHUNK


def test_log_probabilities_of_selected_tokens_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    log_probs = selected_log_probs(logits, torch.tensor([1, 1]))
    assert log_probs.tolist() == pytest.approx([math.log(0.75), math.log(0.1)])


def test_half_precision_is_widened_and_chunks_do_not_change_values_or_gradients():
    torch.manual_seed(0)
    logits = (20 * torch.randn(CHUNK + 3, 5)).bfloat16().requires_grad_()
    ids = torch.randint(5, (CHUNK + 3,))
    log_probs = selected_log_probs(logits, ids)
    expected = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(log_probs.sum(), logits)
    (oracle,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, oracle)


def test_sums_up_to_and_within_each_step_by_hand():
    log_probs = torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, 0.0, -5.0, 0.0]])  # the question has 1 and 2 tokens
    positions = torch.tensor([[1, 3], [2, 0]])  # the second solution has one step
    assert step_log_prob_sums(log_probs, positions).tolist()[0] == [-1.0, -6.0]
    assert step_log_prob_sums(log_probs, positions, cumulative=False).tolist()[0] == [-1.0, -5.0]
    assert step_log_prob_sums(log_probs, positions)[1, 0].item() == -5.0


def test_long_sums_keep_their_digits():
    """The difference of two sums of -20000 has an error below 1e-9, where float32 has 2e-3."""
    ours = torch.full((1, 20_000), -1.0)
    ours[0, -1] = -1.5
    ends = torch.tensor([[19_999]])
    sums = [step_log_prob_sums(values, ends)[0] for values in (ours, torch.full((1, 20_000), -1.0))]
    assert implicit_reward(*sums, 0.05).item() == pytest.approx(-0.025, abs=1e-9)


def test_reward_by_hand_and_zero_for_equal_models():
    reward = implicit_reward(torch.tensor([-2.0, -7.0]), torch.tensor([-5.0, -7.0]), 0.1)
    assert reward.tolist() == pytest.approx([0.3, 0.0]) and reward.dtype == torch.float32
