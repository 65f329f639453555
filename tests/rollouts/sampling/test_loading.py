"""Samplers from named settings."""

import pytest

from erprm_trl import EndpointSampler, TransformersSampler, dial
from erprm_trl.rollouts import CollectConfig
from erprm_trl.rollouts.sampling import load_sampler


def test_settings_of_each_backend(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shared = {"model_name_or_path": "erprm_trl/dial/base", "temperature": 0.5, "max_new_tokens": 7}
    local = load_sampler({**shared, "batch_size": 3, "base_url": None})
    assert isinstance(local, TransformersSampler) and local.settings["model"] == dial.BASE_PATH
    assert (local.temperature, local.max_new_tokens, local.batch_size, local.top_p) == (0.5, 7, 3, 1.0)
    remote = load_sampler(
        {**shared, "backend": "endpoint", "base_url": "http://host:8000/v1", "max_concurrency": 2}
        | {"model_init_kwargs": {"tokenizer": dial.BASE_PATH, "send": "text"}}
    )
    assert isinstance(remote, EndpointSampler) and remote.client.max_concurrency == 2 and remote.send == "text"


def test_a_collections_sampler_has_the_same_settings():
    config = CollectConfig(dial.BASE_PATH, "questions", "out", temperature=0.5, batch_size=3)
    alone = load_sampler({"model_name_or_path": dial.BASE_PATH, "temperature": 0.5, "batch_size": 3})
    assert config._sampler().settings == alone.settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("transformers", "sampler: got 'transformers' .str., expected a mapping"),
        ({"model_name": "x"}, "got the setting 'model_name', expected one of .* Did you mean 'model_name_or_path'"),
        ({"model_name_or_path": "x", "backend": "tgi"}, "got backend 'tgi', expected one of transformers, vllm"),
        ({"backend": "vllm"}, "got model_name_or_path=None with backend 'vllm'"),
        ({"model_name_or_path": "x", "backend": "endpoint"}, "got base_url=None with backend 'endpoint'"),
    ],
)
def test_errors_name_the_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        load_sampler(settings)
