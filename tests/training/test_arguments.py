"""Tests the conversion of training arguments into the trainer's own configuration, and the errors."""

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from erprm_trl import ERPRMConfig, StepGRPOConfig, StepPPOConfig
from erprm_trl.training.arguments import as_config


def test_plain_arguments_keep_their_values(tmp_path):
    settings = {"learning_rate": 0.25, "max_steps": 7, "use_cpu": True, "bf16": False, "hub_token": "secret"}
    args = as_config(TrainingArguments(str(tmp_path), **settings), ERPRMConfig, subject="Trainer")
    assert type(args) is ERPRMConfig and args.output_dir == str(tmp_path)
    assert {name: getattr(args, name) for name in settings} == settings
    assert (args.eta, args.max_length, args.good_token) == (2.0, 1024, None)  # the defaults of ERPRMConfig


def test_own_configurations_are_returned_unchanged(tmp_path):
    class Subclass(ERPRMConfig):
        pass

    for cls in (ERPRMConfig, Subclass):
        args = cls(str(tmp_path), use_cpu=True, bf16=False)
        assert as_config(args, ERPRMConfig, subject="Trainer") is args


def test_a_subclass_of_plain_arguments_is_accepted(tmp_path):
    class Subclass(TrainingArguments):
        pass

    assert type(as_config(Subclass(str(tmp_path), max_steps=3), ERPRMConfig, subject="Trainer")) is ERPRMConfig


def test_arguments_with_unknown_fields_raise(tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=r"Trainer: got args of type SFTConfig with fields .*Pass ERPRMConfig\("):
        as_config(args, ERPRMConfig, subject="Trainer")
    with pytest.raises(TypeError, match=r"Trainer: got args of type dict, expected ERPRMConfig"):
        as_config({"eta": 2.0}, ERPRMConfig, subject="Trainer")


@pytest.mark.parametrize("config_class", [StepGRPOConfig, StepPPOConfig])
def test_redefined_fields_are_copied_only_if_they_were_changed(config_class, tmp_path):
    options = {"subject": "Trainer", "derived": ("steps_per_generation",), "redefined": ("beta", "scale_rewards")}
    common = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 8}
    args = as_config(GRPOConfig(str(tmp_path), **common), config_class, **options)
    assert args.beta_is_default and (args.beta, args.scale_rewards) == (0.0, "batch")
    args = as_config(GRPOConfig(str(tmp_path), beta=0.02, scale_rewards="none", **common), config_class, **options)
    assert not args.beta_is_default and (args.beta, args.scale_rewards) == (0.02, "none")


def test_excluded_configurations_are_refused(tmp_path):
    grpo, ppo = (cls(str(tmp_path), use_cpu=True, bf16=False) for cls in (StepGRPOConfig, StepPPOConfig))
    options = {"subject": "Trainer", "excluded": (StepPPOConfig,)}
    assert as_config(grpo, StepGRPOConfig, **options) is grpo
    with pytest.raises(TypeError, match="Trainer: got args of type StepPPOConfig, expected StepGRPOConfig"):
        as_config(ppo, StepGRPOConfig, **options)
    options["excluded"] = (StepGRPOConfig,)
    assert as_config(ppo, StepPPOConfig, **options) is ppo
    with pytest.raises(TypeError, match="Trainer: got args of type StepGRPOConfig, expected StepPPOConfig"):
        as_config(grpo, StepPPOConfig, **options)
