"""Tests the soft-label loss against its definition in plain Python."""

import math

import pytest
import torch

from erprm_trl.functional import smoothed_labels, soft_step_cross_entropy, step_log_odds


def oracle(good, bad, label):
    p = math.exp(good) / (math.exp(good) + math.exp(bad))
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def test_two_logit_head():
    logits = torch.tensor([[[1.0, -0.5], [0.2, 0.9]], [[-2.0, 0.1], [3.0, 3.0]]])
    labels = torch.tensor([[0.9, 0.25], [0.0, 0.5]])
    expected = torch.tensor(
        [[oracle(*logits[i, j].tolist(), labels[i, j].item()) for j in range(2)] for i in range(2)]
    )
    assert torch.allclose(soft_step_cross_entropy(logits, labels, reduction="none"), expected, atol=1e-6)
    assert soft_step_cross_entropy(logits, labels).item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert soft_step_cross_entropy(logits, labels, reduction="sum").item() == pytest.approx(
        expected.sum().item(), abs=1e-5
    )


def test_one_logit_equals_two_logits_with_a_bad_logit_of_zero():
    logits = torch.randn(5, 1)
    labels = torch.rand(5)
    both = torch.cat([logits, torch.zeros(5, 1)], -1)
    assert torch.allclose(soft_step_cross_entropy(logits, labels), soft_step_cross_entropy(both, labels))


def test_hard_labels_reduce_to_cross_entropy_and_the_optimum_is_the_labels_entropy():
    logits = torch.randn(6, 2)
    hard = torch.tensor([1.0, 0, 1, 0, 0, 1])
    # class 0 is good, so a label of 1 is class 0
    expected = torch.nn.functional.cross_entropy(logits, (1 - hard).long())
    assert torch.allclose(soft_step_cross_entropy(logits, hard), expected, atol=1e-6)
    v = 0.3
    at_optimum = soft_step_cross_entropy(torch.tensor([[math.log(v / (1 - v))]]), torch.tensor([v]))
    assert at_optimum.item() == pytest.approx(-(v * math.log(v) + (1 - v) * math.log(1 - v)), abs=1e-6)


def test_the_loss_is_computed_in_float32_for_every_dtype():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=torch.bfloat16)
    loss = soft_step_cross_entropy(logits, torch.tensor([1.0, 1.0]), reduction="none")
    assert loss.dtype == torch.float32
    assert loss[0].item() == 0.0
    assert loss[1].item() == pytest.approx(2e4, rel=0.01)
    # The two logits round to the same bfloat16 grid point unless they are subtracted in float32.
    close = torch.tensor([[10.0, 9.9375]], dtype=torch.bfloat16)
    assert step_log_odds(close).item() == 0.0625


def test_gradients():
    labels = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64)
    for columns in (1, 2):
        logits = torch.randn(3, columns, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: soft_step_cross_entropy(x, labels), (logits,))


def test_no_value_is_read_back_to_the_cpu():
    """Reading a value would make the accelerator wait in every micro-batch. The `meta` device has no values to
    read."""
    logits = torch.empty(3, 2, device="meta")
    assert soft_step_cross_entropy(logits, torch.empty(3, device="meta"), "none").shape == (3,)


def test_shape_errors():
    with pytest.raises(ValueError, match=r"\(2, 3\), expected a last axis of 2"):
        soft_step_cross_entropy(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="one label per step"):
        soft_step_cross_entropy(torch.zeros(2, 2), torch.zeros(3))


def test_smoothed_labels():
    labels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(smoothed_labels(labels, 0.2), torch.tensor([0.1, 0.3, 0.5, 0.9]))
    assert torch.equal(smoothed_labels(labels, 0.0), labels)
    assert torch.equal(smoothed_labels(labels, 1.0), torch.full((4,), 0.5))
    # For two classes, this equals the label smoothing of torch's cross-entropy.
    logits = torch.tensor([[0.3, -0.7], [1.5, 2.0]])
    ours = soft_step_cross_entropy(logits, smoothed_labels(torch.tensor([1.0, 0.0]), 0.1))
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)
