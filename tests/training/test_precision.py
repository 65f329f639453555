"""The precision of trainings that set none: float32 on a processor without bfloat16, else TRL's default."""

import pytest

from erprm_trl import ERPRMConfig, RAFTConfig, StepGRPOConfig, StepPPOConfig
from erprm_trl.training import precision


CONFIGS = [ERPRMConfig, RAFTConfig, StepGRPOConfig, StepPPOConfig]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("has_instructions", "options", "expected"),
    [
        (False, {}, (False, False)),
        (False, {"bf16": True}, (True, False)),
        (False, {"fp16": True}, (False, True)),
        (True, {}, (True, False)),
        (True, {"bf16": False}, (False, False)),
    ],
    ids=str,
)
def test_a_processor_without_bfloat16_trains_in_float32(
    monkeypatch, tmp_path, config, has_instructions, options, expected
):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: has_instructions)
    args = config(str(tmp_path), use_cpu=True, report_to="none", **options)
    assert (args.bf16, args.fp16) == expected


def test_an_accelerator_keeps_the_default(monkeypatch):
    from types import SimpleNamespace

    import torch

    monkeypatch.setattr(precision, "computes_bfloat16", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for use_cpu, expected in ((False, None), (True, False)):
        args = SimpleNamespace(bf16=None, fp16=False, use_cpu=use_cpu)
        precision.choose_precision(args)
        assert args.bf16 is expected
