"""Scores of vLLM's and SGLang's servers, against fakes of their published contracts."""

import dataclasses
import json

import pytest
import torch
from fake_engines import FakeSGLang, FakeVLLM
from serving import HeldScorer, serving
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
from zoo import save_tiny, word_level

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.reward_model import RemoteBackend
from erprm_trl.reward_model.scoring import EngineServerBackend, export_reward_model, load_format
from erprm_trl.reward_model.scoring.server import scoring_app
from erprm_trl.rollouts import EndpointError


QUESTIONS = [f"Tom dial {index} . right 15 . ?" for index in range(9)]
STEPS = [[f"{index} + 15 = 3", "7 2", "answer 3"][: index % 4] for index in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny reward model with a language-model head."""
    folder = tmp_path_factory.mktemp("models") / "lm"
    save_tiny(folder, word_level(), initializer_range=0.3)
    FORMAT.save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    export_reward_model(folder, folder.with_name("exported"))
    return folder.with_name("exported")


@pytest.fixture(scope="module")
def one_logit(folder):
    """A tiny reward model with a token classification head of one logit."""
    save_tiny(folder.with_name("one"), word_level(), head="token", initializer_range=0.3)
    dataclasses.replace(FORMAT, head="token").save(folder.with_name("one"))
    return folder.with_name("one")


def fake_vllm(path, **options):
    return FakeVLLM(AutoModelForTokenClassification.from_pretrained(path), root=str(path), **options)


def fake_sglang(path, **options):
    return FakeSGLang(AutoModelForCausalLM.from_pretrained(path), root=str(path), **options)


@pytest.fixture(params=["vLLM", "SGLang", "vLLM with one logit"])
def engine(request, folder, exported, one_logit):
    """A fake server and the local scorer of its model."""
    if request.param == "SGLang":
        return fake_sglang(folder), StepScorer.from_pretrained(folder)
    path = exported if request.param == "vLLM" else one_logit
    return fake_vllm(path), StepScorer.from_pretrained(path)


def scorer_of(url, **options):
    return StepScorer.from_backend(EngineServerBackend(url, retry_wait=0.001, max_attempts=3, **options))


def close_to(expected):
    return [pytest.approx(scores, abs=1e-5) for scores in expected]


def test_scores_equal_local_scores(engine):
    app, local = engine
    with serving(app) as url:
        scorer = StepScorer.from_pretrained(url, batch_size=3, device="cpu")
        assert isinstance(scorer.backend, EngineServerBackend) and scorer.backend.engine.name.lower() == app.owner
        expected = local.score(QUESTIONS, STEPS)
        assert scorer.score(QUESTIONS, STEPS) == close_to(expected)
        assert max(sum(expected, [])) - min(sum(expected, [])) > 0.05
        assert [len(scores) for scores in expected] == [index % 4 for index in range(9)]
        assert scorer.score([], []) == [] and scorer.score(QUESTIONS[:1], [[]]) == [[]]
        assert load_format(url) == scorer.prm_format == local.prm_format
        assert (scorer.model_name, scorer.weights) == ("served", None)
        with_version = StepScorer.from_pretrained(f"{url}/v1/")
        assert with_version.score(QUESTIONS[1:2], STEPS[1:2]) == close_to(expected[1:2])


def test_solutions_that_are_too_long_are_errors_or_skipped(engine):
    app, local = engine
    with serving(app) as url:
        scorer = scorer_of(url)
        longest = scorer.context_length
        assert longest == local.context_length - (app.owner == "sglang") == 256 - (app.owner == "sglang")
        shorter = len(local.tokenizer(FORMAT.render_prompt("Tom ?") + " " + FORMAT.separator)["input_ids"])
        steps = [["7"], ["7 " * (longest - shorter)], ["7 " * (longest - shorter + 1)]]
        assert scorer.score(["Tom ?"] * 2, steps[:2]) == close_to(local.score(["Tom ?"] * 2, steps[:2]))
        with pytest.raises(ValueError, match=f"^Solution 2 has {longest + 1} tokens, expected at most .* {longest}"):
            scorer.score(["Tom ?"] * 3, steps)
        assert [len(scores) for scores in scorer.score(["Tom ?"] * 3, steps, skip_too_long=True)] == [1, 1, 0]


def test_a_call_is_divided_into_requests(engine):
    app, local = engine
    with serving(app) as url:
        scores = scorer_of(url, solutions_per_request=2, max_concurrency=1).score(QUESTIONS, STEPS)
    assert scores == close_to(local.score(QUESTIONS, STEPS))
    name = "input" if app.owner == "vllm" else "input_ids"
    assert [len(body[name]) for body in app.bodies] == [2, 2, 2]  # three solutions have no steps


@pytest.mark.parametrize("fault", [408, 429, 502, 503, 504])
def test_temporary_faults_are_retried(fault, engine):
    app, local = engine
    app.fault = lambda index: fault if index < 2 else None
    with serving(app) as url:
        assert scorer_of(url).score(QUESTIONS, STEPS) == close_to(local.score(QUESTIONS, STEPS))
    assert len(app.bodies) == 3


NAN = '{"data": [{"index": 0, "data": [[NaN, NaN]]}]}'
THREE_CLASSES = '{"data": [{"index": 0, "data": [' + ",".join(["[1, 2, 3]"] * 14) + "]}]}"
PROBABILITIES_OF_A_TEXT = '[{"embedding": [0.1, 0.9], "meta_info": {"prompt_tokens": 14}}]'


@pytest.mark.parametrize(
    "answer", ["<html>", "{}", "[]", '{"data": [1]}', NAN, THREE_CLASSES, PROBABILITIES_OF_A_TEXT]
)
def test_an_answer_in_another_form_is_an_error_and_not_retried(answer, engine):
    app, _ = engine
    app.fault = lambda index: answer
    with serving(app) as url, pytest.raises(EndpointError, match="got an answer in another form.*every token"):
        scorer_of(url).score(QUESTIONS[1:2], STEPS[1:2])
    assert len(app.bodies) == 1


def test_a_refused_request_names_the_remedy(engine):
    app, _ = engine
    app.fault = lambda index: 404
    with serving(app) as url, pytest.raises(EndpointError, match="404.*vllm serve FOLDER --runner pooling") as error:
        scorer_of(url).score(QUESTIONS[1:2], STEPS[1:2])
    assert error.value.status == 404 and len(app.bodies) == 1


# Which kind of server


def test_a_server_of_this_package_is_told_apart(exported):
    with serving(scoring_app(HeldScorer())) as url:
        assert isinstance(StepScorer.from_pretrained(url).backend, RemoteBackend)
        with pytest.raises(ValueError, match="tokenizer: got a value together with the address of a scoring server"):
            StepScorer.from_pretrained(url, tokenizer=exported)


def test_other_servers_are_refused(exported):
    app = fake_vllm(exported)
    app.cards[0]["owned_by"] = "llamacpp"
    with serving(app) as url:
        with pytest.raises(EndpointError, match="got a server of 'llamacpp', expected a server of erprm serve, vLLM"):
            StepScorer.from_pretrained(url)
        app.cards.clear()
        with pytest.raises(EndpointError, match="got an answer without models"):
            StepScorer.from_pretrained(url)
        with pytest.raises(EndpointError, match="/format refused a request with status 404"):
            StepScorer.from_pretrained(f"{url}/elsewhere")


def test_the_base_model_is_used_on_a_server_with_adapters(exported):
    adapter = {"id": "adapter", "owned_by": "vllm", "root": "/adapter", "parent": "served", "max_model_len": None}
    with serving(fake_vllm(exported, cards=[adapter])) as url:
        assert scorer_of(url).model_name == "served"


def test_a_model_with_another_head_is_refused_with_the_fix(folder, exported):
    with serving(fake_vllm(exported)) as url:
        command = f"erprm export --reward_model {folder} --output_dir FOLDER, then vllm serve FOLDER --runner pooling"
        with pytest.raises(ValueError, match=f"head='lm', expected head='token'.*{command}"):
            StepScorer.from_pretrained(url, tokenizer=folder)
    with serving(fake_sglang(folder)) as url, pytest.raises(ValueError, match="SGLang.*expected head='lm'"):
        StepScorer.from_pretrained(url, tokenizer=exported)


def test_tokenizer_and_format_of_a_path_elsewhere_are_passed(exported, tmp_path):
    app = fake_vllm(exported)
    app.cards[0]["root"] = str(tmp_path / "on-the-server")
    local = StepScorer.from_pretrained(exported)
    with serving(app) as url:
        with pytest.raises(FileNotFoundError, match=r"vLLM server of .*on-the-server.*Pass tokenizer="):
            StepScorer.from_pretrained(url)
        scorer = StepScorer.from_pretrained(url, tokenizer=exported)
        assert scorer.score(QUESTIONS, STEPS) == close_to(local.score(QUESTIONS, STEPS))
        changed = dataclasses.replace(PRMFormat.load(exported), aggregation="mean")
        assert StepScorer.from_pretrained(url, tokenizer=exported, prm_format=changed).prm_format == changed


def test_arguments_that_do_not_apply_are_refused(exported):
    with serving(fake_vllm(exported)) as url:
        for name, value in {"dtype": "float32", "device_map": "auto", "backend": "vllm"}.items():
            with pytest.raises(ValueError, match=f"{name}: got a value together with the address"):
                StepScorer.from_pretrained(url, **{name: value})
    with pytest.raises(ValueError, match="tokenizer: got a value together with a folder or Hub id"):
        StepScorer.from_pretrained(exported, tokenizer=exported)
    with pytest.raises(ValueError, match="backend: got 'vlm', expected one of local, vllm"):
        StepScorer.from_pretrained(exported, backend="vlm")
    with pytest.raises(ValueError, match="device_map: got a value together with backend='vllm'"):
        StepScorer.from_pretrained(exported, backend="vllm", device_map="auto")
    with pytest.raises(ValueError, match="solutions_per_request: got 0, expected at least 1"):
        EngineServerBackend("http://localhost:1", solutions_per_request=0)


def test_the_api_key_is_sent_and_a_login_is_never_shown(exported, monkeypatch):
    monkeypatch.setenv("ERPRM_SCORER_TOKEN", "k3y")
    app = fake_vllm(exported, fault=lambda index: 401)
    with serving(app) as url:
        with pytest.raises(EndpointError, match=r"set \$ERPRM_SCORER_TOKEN to the server's API key") as error:
            StepScorer.from_pretrained(url).score(QUESTIONS[1:2], STEPS[1:2])
        assert app.authorizations == {"Bearer k3y"} and "k3y" not in str(error.value)
        scorer = scorer_of(url.replace("http://", "http://user:passw0rd@"))
    assert "passw0rd" not in scorer.backend.client.base_url
    assert all(token_id == int(token_id) for body in app.bodies for ids in body["input"] for token_id in ids)
    assert json.dumps(app.bodies).find("Tom") == -1  # no text is sent
    assert torch.is_grad_enabled()
