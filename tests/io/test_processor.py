"""Whether a processor multiplies in bfloat16, by the capabilities that torch reports."""

import pytest
import torch

from erprm_trl.io.processor import computes_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_a_processor_with_instructions_for_bfloat16(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_bfloat16() is expected


def test_an_older_release_of_torch_has_no_capabilities(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bfloat16()
