"""Tests that published configurations contain no secrets and no absolute paths."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
from trl import TrlParser

from erprm_trl import ERPRMConfig, RAFTConfig, StepGRPOConfig, StepPPOConfig
from erprm_trl.training.tracking import redacted


SECRET = "hf_AbCdEfGhIjKlMnOp"


@pytest.mark.parametrize(
    "name", "hub_token token api_key OPENAI_API_KEY auth-token password client_secret Authorization key".split()
)
def test_secrets_are_recognised_by_their_names(name):
    assert redacted({"deep": [{name: "abc"}]}) == {"deep": [{name: "<redacted>"}]}
    assert redacted({name: None}) == {name: None}  # a missing secret is not masked


@pytest.mark.parametrize("name", "good_token separator eos_token_id num_tokens tokenizer key_value monkey".split())
def test_names_that_are_not_secrets(name):
    assert redacted({name: "abc"}) == {name: "abc"}


def test_secrets_are_recognised_by_their_form():
    assert redacted(f'{{"token": "{SECRET}"}}') == '{"token": "<redacted>"}'
    assert redacted(["Bearer abc.def", "sk-0123456789abcdef"]) == ["<redacted>", "<redacted>"]
    assert redacted("http://me:pass@host:8000/v1") == "http://host:8000/v1"
    assert redacted("a hf_model and a task-force") == "a hf_model and a task-force"


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "outputs" / "erprm"), os.path.join(os.sep, "data", "models", "qwen")
    assert redacted([inside, Path(inside), outside, f"{outside}/"]) == [
        "outputs/erprm",
        "outputs/erprm",
        "qwen",
        "qwen",
    ]
    assert redacted("~/models/qwen") == "qwen" or not os.path.isabs(redacted("~/models/qwen"))
    assert redacted(["Qwen/Qwen2.5", "outputs/x", "/think {question}", "\n", ""]) == [
        "Qwen/Qwen2.5", "outputs/x", "/think {question}", "\n", ""
    ]  # fmt: skip


@pytest.mark.parametrize("config", [ERPRMConfig, RAFTConfig, StepGRPOConfig, StepPPOConfig])
def test_configurations(config, tmp_path):
    options = {"hub_token": SECRET, "use_cpu": True, "bf16": False, "report_to": "none"}
    args = config(
        str(tmp_path / "run"), model_init_kwargs={"token": SECRET, "cache_dir": "/data/big/cache"}, **options
    )
    shown = args.to_dict()
    assert SECRET not in args.to_json_string() and str(tmp_path) not in args.to_json_string()
    assert args.hub_token == SECRET and args.output_dir == str(tmp_path / "run")
    assert {field.name for field in fields(args) if field.init} == set(shown)
    assert shown["model_init_kwargs"] == {"token": "<redacted>", "cache_dir": "cache"}
    if config is ERPRMConfig:
        assert ERPRMConfig("x", good_token="✓", **options).to_dict()["good_token"] == "✓"
    for wrong in ({"log_artifacts": ["model"]}, {"num_logged_solutions": -1}):
        with pytest.raises(ValueError, match="expected"):
            config(str(tmp_path), **wrong, **options)


@pytest.mark.parametrize("config", [ERPRMConfig, StepGRPOConfig, RAFTConfig])
def test_the_fields_on_the_command_line(config):
    (args,) = TrlParser(config).parse_args_and_config(
        "--output_dir x --log_artifacts config data --num_logged_solutions 0 --use_cpu true --bf16 false".split()
    )
    assert args.log_artifacts == ["config", "data"] and args.num_logged_solutions == 0
