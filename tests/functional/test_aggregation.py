"""Tests the aggregation of ragged step scores against plain Python."""

import math

import pytest
import torch

from erprm_trl.functional import AGGREGATIONS, aggregate


RAGGED = [[0.9, 0.4, 0.8], [0.5], [0.2, 0.6, 0.7, 1.0], [0.0, 0.3]]
ORACLE = {
    "min": min,
    "last": lambda steps: steps[-1],
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
}


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_against_plain_python(method):
    expected = torch.tensor([ORACLE[method](steps) for steps in RAGGED])
    assert torch.allclose(aggregate(RAGGED, method), expected)
    assert torch.allclose(aggregate([torch.tensor(steps) for steps in RAGGED], method), expected)


@pytest.mark.parametrize("method", AGGREGATIONS)
@pytest.mark.parametrize("filler", [0.0, -5.0, 7.0, math.nan])
def test_padding_is_never_read(method, filler):
    padded = torch.full((4, 6), filler)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    for row, steps in enumerate(RAGGED):
        padded[row, : len(steps)] = torch.tensor(steps)
        mask[row, : len(steps)] = True
    assert torch.allclose(aggregate(padded, method, mask), aggregate(RAGGED, method))


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_the_aggregate_of_one_step_is_its_score(method):
    assert aggregate([[0.37]], method).item() == pytest.approx(0.37)


def test_product_is_at_most_min_is_at_most_mean():
    scores = torch.rand(50, 7)
    assert (aggregate(scores, "product") <= aggregate(scores, "min")).all()
    assert (aggregate(scores, "min") <= aggregate(scores, "mean")).all()


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_gradients(method):
    scores = torch.tensor([[0.9, 0.4, 0.8], [0.5, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda x: aggregate(x, method, mask), (scores,))


def test_errors():
    with pytest.raises(ValueError, match="'median'.*min, last, product, mean"):
        aggregate(RAGGED, "median")
    with pytest.raises(ValueError, match="Solution 1: got no steps"):
        aggregate([[0.1], []], "min")
    with pytest.raises(ValueError, match=r"Mask: got shape \(2, 2\)"):
        aggregate(torch.rand(2, 3), "min", torch.ones(2, 2))
