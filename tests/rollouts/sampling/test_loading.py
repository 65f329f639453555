"""Samplers from named settings."""

import pytest

from erprm_trl import EndpointSampler, TransformersSampler, dial
from erprm_trl.rollouts import CollectConfig, CollectionSettings, sampling
from erprm_trl.rollouts.sampling import load_sampler, loading
from erprm_trl.rollouts.shards import write_manifest


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


def test_the_dtype_of_the_weights():
    model = {"model_name_or_path": dial.BASE_PATH}
    for settings, expected in (
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None}, "float32"),  # of the checkpoint
        ({"dtype": "bfloat16", "model_init_kwargs": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "bfloat16"),
    ):
        assert load_sampler({**model, **settings}).settings["dtype"] == expected
    assert (
        CollectConfig(dial.BASE_PATH, "questions", "out", dtype="bfloat16")._sampler().settings["dtype"] == "bfloat16"
    )


def test_a_collection_keeps_its_dtype_when_it_is_resumed(monkeypatch, tmp_path):
    chosen = []

    def default_dtype(settings):
        chosen.append(settings["model_name_or_path"])
        return "bfloat16"

    monkeypatch.setattr(sampling, "default_dtype", default_dtype)
    config = CollectConfig(dial.BASE_PATH, "questions", str(tmp_path))
    assert config._sampler().settings["dtype"] == "bfloat16" and chosen == [dial.BASE_PATH]
    assert CollectConfig(dial.BASE_PATH, "questions", "out", dtype="float32")._sampler().settings["dtype"] == "float32"
    settings = CollectionSettings(
        num_questions=1, num_solutions=1, chunk_size=1, sampler={"dtype": "float32"}, completer={"dtype": "bfloat16"}
    )
    write_manifest(tmp_path, {"config": settings.to_json()})
    assert config._sampler().settings["dtype"] == "float32"  # of the folder, also on another processor
    two = CollectConfig(dial.BASE_PATH, "questions", str(tmp_path), completer_model_name_or_path=dial.BASE_PATH)
    assert two._completer().settings["dtype"] == "bfloat16" and two._sampler().settings["dtype"] == "float32"
    assert config.dtype is None and len(chosen) == 1


def test_the_engine_gets_the_dtype(monkeypatch):
    monkeypatch.setattr(loading, "VLLMSampler", lambda model, engine_kwargs: engine_kwargs)
    settings = {"backend": "vllm", "model_name_or_path": "x", "dtype": "float16", "model_init_kwargs": {"seed": 1}}
    assert load_sampler(settings) == {"dtype": "float16", "seed": 1}


def test_a_server_has_no_dtype_to_choose():
    server = {"backend": "endpoint", "base_url": "http://host:8000/v1"}
    with pytest.raises(ValueError, match="dtype: got 'bfloat16' with backend='endpoint'.*when you start the server"):
        CollectConfig("model", "questions", "out", dtype="bfloat16", **server)
    # The dtype of a second policy that is loaded here.
    CollectConfig("model", "questions", "out", dtype="bfloat16", completer_model_name_or_path="b",
                  completer_backend="transformers", **server)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_name_or_path": "x", "dtype": "float16", "model_init_kwargs": {"dtype": "bfloat16"}},
            "got dtype='float16' and model_init_kwargs with dtype 'bfloat16'",
        ),
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
