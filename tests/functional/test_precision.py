"""Tests the precision in which tensor functions compute."""

import pytest
import torch

from erprm_trl.functional.precision import at_least_float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_inputs_are_converted_to_float32_and_float64_is_kept(dtype, expected):
    values = torch.tensor([0, 1, 1], dtype=dtype)
    widened = at_least_float32(values)
    assert widened.dtype == expected and widened.tolist() == [0.0, 1.0, 1.0]
    assert (widened is values) == (dtype == expected)


def test_the_conversion_passes_the_gradient():
    values = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    at_least_float32(values).sum().backward()
    assert values.grad.tolist() == [1.0, 1.0]
