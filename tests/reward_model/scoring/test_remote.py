"""Remote scoring: the same scores as the server's scorer in every function that takes a reward model, and the handling
of a server's faults."""

import asyncio
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_runs import RECIPES, SMALL_POLICY, parse
from serving import Faulty, HeldScorer, expected_scores, serving, started
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import save_tiny, word_level

from erprm_trl import (
    StepGRPOConfig,
    StepGRPOTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    StepRewardFunction,
    StepScorer,
    dial,
)
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.dial.experiments.policies import CPU_QUIET
from erprm_trl.policy import prompt_dataset
from erprm_trl.policy.raft.sampling import load_scorer
from erprm_trl.reward_model import RemoteBackend
from erprm_trl.reward_model.scoring.loading import load_format
from erprm_trl.reward_model.scoring.server import scoring_app
from erprm_trl.reward_model.scoring.sharded import check_sharding
from erprm_trl.rollouts import EndpointError, TransformersSampler, collect_rollouts, load_questions


TOKEN, LOGIN = "t0ken-that-nobody-may-see", "user:passw0rd@"
QUESTIONS = [f"Tom dial {index} . right 15 . ?" for index in range(9)]
STEPS = [[f"{index} + 15 = 3"] * (index % 4) for index in range(9)]
TOO_LONG = ["7 " * 300]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny reward model."""
    folder = tmp_path_factory.mktemp("reward-model")
    save_tiny(folder, word_level())
    FORMAT.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def local(path):
    """A scorer of the model in this process."""
    return StepScorer.from_pretrained(path)


@pytest.fixture(scope="module")
def url(path):
    """The address of a server with the model."""
    with serving(scoring_app(StepScorer.from_pretrained(path))) as address:
        yield address


def remote(url, **arguments):
    options = {"retry_wait": 0.001, "max_attempts": 3, "request_timeout": 60.0, **arguments}
    return StepScorer.from_backend(RemoteBackend(url, **options))


def close_to(expected):
    return [pytest.approx(scores, abs=1e-6) for scores in expected]


def expected(questions, steps):
    return [expected_scores(*solution) for solution in zip(questions, steps, strict=True)]


# The same scores


def test_remote_scores_equal_local_scores(local, url, path):
    scorer = StepScorer.from_pretrained(url, batch_size=7, device="cpu")
    assert isinstance(scorer.backend, RemoteBackend)
    assert scorer.score(QUESTIONS, STEPS) == local.score(QUESTIONS, STEPS)
    assert [len(scores) for scores in scorer.score(QUESTIONS, STEPS)] == [index % 4 for index in range(9)]
    texts = [f" 7 + 15 = 2 ки answer {index} ки" for index in range(9)]
    assert scorer.score_texts(QUESTIONS, texts) == local.score_texts(QUESTIONS, texts)
    assert scorer.split(texts[0]) == ["7 + 15 = 2", "answer 0"]
    rows = [1, 2, 3, 5]
    asked = [QUESTIONS[i] for i in rows], [tuple(STEPS[i]) for i in rows]
    assert scorer.score_solutions(*asked) == local.score_solutions(*asked)
    assert scorer.score([], []) == [] and scorer.score(QUESTIONS[:1], [[]]) == [[]]
    assert load_format(url) == scorer.prm_format == FORMAT
    assert (scorer.model_name, scorer.context_length) == (Path(path).name, 256)


def test_the_client_reads_the_servers_scores_at_any_eta(path):
    local = StepScorer.from_pretrained(path, trained_eta=0)
    asked = QUESTIONS[1:4], STEPS[1:4]
    with serving(scoring_app(local)) as address:
        assert load_format(address).eta == 0
        client = StepScorer.from_pretrained(address, eta=2.0)
        assert client.score(*asked) == local.score(*asked, eta=2.0)
        assert client.score(*asked, eta=0) == local.score(*asked)
    # A server that reads at 4 tells so, and a client reads its scores at 2.
    with serving(scoring_app(local.at_eta(4.0))) as address:
        client = StepScorer.from_pretrained(address)
        assert (client.prm_format.eta, client.score(*asked)) == (4.0, local.score(*asked, eta=4.0))
        for scores, expected_scores_ in zip(client.score(*asked, eta=2.0), local.score(*asked, eta=2.0), strict=True):
            assert scores == pytest.approx(expected_scores_, abs=1e-9)
    with serving(scoring_app(StepScorer.from_pretrained(path, trained_eta=math.inf))) as address:
        assert load_format(address).eta == math.inf


def test_solutions_that_are_too_long_are_errors_or_skipped(local, url):
    scorer, steps = remote(url), [*STEPS[1:4], TOO_LONG, STEPS[5]]
    questions = QUESTIONS[:5]
    assert scorer.score(questions, steps, skip_too_long=True) == local.score(questions, steps, skip_too_long=True)
    with pytest.raises(ValueError, match=r"Solution 3 is too long for http://.* 256 tokens"):
        scorer.score(questions, steps)
    with pytest.raises(ValueError, match="got 5 questions for 4 solutions"):
        scorer.score(questions, steps[:4])


def test_requests_stay_within_the_servers_limits():
    longest = ["d" * 150]  # its request body has 182 bytes
    questions, steps = (
        [f"ü {index} ?" for index in range(20)],
        [["a", "ü"][: 1 + index % 2] for index in range(20)],
    )
    steps[7], steps[11], steps[13] = ["a", "b", "c"], ["d" * 250], longest
    app = Faulty(scoring_app(HeldScorer(), max_solutions=3, max_steps=2, max_body_bytes=220))
    with serving(app) as url:
        scores = remote(url).score(questions, steps, skip_too_long=True)
        with pytest.raises(ValueError, match=r"Solution 7 .* 2 steps and 220 bytes"):
            remote(url).score(questions[:10], steps[:10])
    assert scores == [[] if i in (7, 11) else values for i, values in enumerate(expected(questions, steps))]
    sizes = [len(sent["steps"]) for sent in app.bodies[:7]]
    assert max(sizes) == 3 and sum(len(sent["steps"]) for sent in app.bodies) == 18 + 9


def test_requests_are_as_large_as_the_limits_allow():
    questions = [f"Tom dial ü {index:02} . right 15 . ?" for index in range(18)]
    steps = [["7 + 15 = 22", "answer 22"]] * 18
    four = {"questions": questions[:4], "steps": steps[:4], "skip_too_long": True}
    most = len(json.dumps(four, ensure_ascii=False).encode())
    app = Faulty(scoring_app(HeldScorer(), max_body_bytes=most + 8))
    with serving(app) as url:
        remote(url, max_concurrency=1).score(questions, steps)
    assert [len(sent["steps"]) for sent in app.bodies] == [4, 4, 4, 4, 2]


def test_split_requests_give_the_same_scores(local):
    with serving(scoring_app(local, max_solutions=2)) as url:
        assert remote(url).score(QUESTIONS, STEPS) == close_to(local.score(QUESTIONS, STEPS))


def test_max_concurrency_limits_concurrent_requests():
    app = Faulty(scoring_app(HeldScorer(), max_solutions=1), together=3)
    with serving(app) as url:
        assert remote(url, max_concurrency=3).score(QUESTIONS, STEPS) == expected(QUESTIONS, STEPS)
    assert app.most_at_once == 3


def test_many_clients_can_score_at_once(local, url):
    scores_here = close_to(local.score(QUESTIONS, STEPS))
    with ThreadPoolExecutor(8) as clients:
        scorers = list(clients.map(lambda _: remote(url), range(8)))
        for scores in clients.map(lambda scorer: scorer.score(QUESTIONS, STEPS), scorers * 4):
            assert scores == scores_here


def test_scoring_works_inside_a_running_event_loop(local, url):
    async def cell():
        return remote(url).score(QUESTIONS, STEPS)

    assert asyncio.run(cell()) == local.score(QUESTIONS, STEPS)


# Faults


@pytest.mark.slow("waits for many retries")
@pytest.mark.parametrize("fault", [408, 429, 502, 503, 504, "drop", "hang"])
def test_temporary_faults_are_retried(fault):
    app = Faulty(scoring_app(HeldScorer(), max_solutions=2), lambda attempt: fault if attempt < 2 else None)
    with serving(app) as url:
        scorer = remote(url, request_timeout=0.3 if fault == "hang" else 60.0, max_attempts=9)
        assert scorer.score(QUESTIONS, STEPS) == expected(QUESTIONS, STEPS)
    assert set(app.attempts.values()) == {3}


@pytest.mark.parametrize(
    "fault",
    [
        400,
        401,
        404,
        413,
        422,
        500,
        "<html>",
        *(f'{{"scores": {scores}}}' for scores in ("[[NaN]]", "[]", "[[0.5, 0.5]]")),
    ],
)
def test_permanent_faults_are_not_retried(fault):
    app = Faulty(scoring_app(HeldScorer()), lambda attempt: fault)
    with serving(app) as url:
        said = (
            rf"/score refused a request with status {fault}: 'no, {fault}'. Remedy:"
            if isinstance(fault, int)
            else "/score: got"
        )
        with pytest.raises(EndpointError, match=said):
            remote(url).score(QUESTIONS[1:2], STEPS[1:2])
    assert set(app.attempts.values()) == {1}


def test_a_server_that_stays_down_is_an_error():
    app = Faulty(scoring_app(HeldScorer()), lambda attempt: 503)
    with serving(app) as url:
        scorer = remote(url)
        with pytest.raises(EndpointError, match="/score gave no scores in 3 attempts .* status 503: no, 503. Check"):
            scorer.score(QUESTIONS, STEPS)
        assert set(app.attempts.values()) == {3}
    with pytest.raises(EndpointError, match="/format gave no scores in 3 attempts .*ConnectError"):
        remote(url)


def test_a_nan_score_is_an_error():
    with (
        serving(scoring_app(HeldScorer())) as url,
        pytest.raises(EndpointError, match=r"500: .*\[0\]\[0\].* returned nan"),
    ):
        remote(url).score(["Tom ?"], [["nan"]])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)
LIMITS = ["max_length", "max_solutions", "max_steps", "max_body_bytes"]
FORMATS = st.fixed_dictionaries(
    {"prm_format": st.just(json.loads(FORMAT.to_json())), "model": st.text() | JSON_VALUES}
    | {name: st.integers(1, 9) | JSON_VALUES for name in LIMITS}
)
SCORES = st.fixed_dictionaries({"scores": st.lists(st.lists(st.floats(0, 1) | JSON_VALUES)) | JSON_VALUES})
HUGE = ["[" * 100_000, '{"scores": [[' + "9" * 400 + "]]}", '{"scores": [[2.0]]}', '{"scores": [[-0.1]]}', ""]


@pytest.mark.slow("hundreds of hostile answers")
def test_any_answer_of_a_server_is_read_or_refused(url):
    backend = remote(url).backend

    @settings(max_examples=settings().max_examples // 2, deadline=None)
    @given(st.sampled_from(HUGE) | (FORMATS | SCORES | JSON_VALUES).map(json.dumps))
    def check(text):
        for read, path in ((backend._read_scores, "/score"), (backend._read_format, "/format")):
            try:
                answer = read(text)
            except EndpointError as error:
                assert f"{path}: got an answer in another form" in str(error)
                continue
            if path == "/score":
                assert all(type(value) is float and 0 <= value <= 1 for values in answer for value in values)
            else:
                assert isinstance(answer.model, str) and answer.prm_format.tokens.keys() >= {"separator"}
                assert all(getattr(answer, name) is None or getattr(answer, name) >= 1 for name in LIMITS)

    check()


PIECES = st.sampled_from(
    ["7", " + ", "ки", "</s>", "\n", "\x00", "\u202e", "😀", "e\u0301", "7 " * 300, ""]
) | st.text(max_size=3)
TEXTS = st.lists(PIECES, max_size=4).map("".join)


def test_a_real_model_scores_any_text(url, local):
    @settings(max_examples=settings().max_examples // 4, deadline=None)
    @given(TEXTS, st.lists(st.lists(TEXTS, max_size=4), max_size=3), st.booleans())
    def check(question, steps, skip):
        body = {"questions": [question] * len(steps), "steps": steps, "skip_too_long": skip}
        answer = httpx.post(f"{url}/score", json=body, timeout=60, verify=False)
        scores = local.score(body["questions"], steps, skip_too_long=True)
        cut = [solution and not values for solution, values in zip(steps, scores, strict=True)]
        assert answer.status_code == (422 if any(cut) and not skip else 200)
        if answer.status_code == 200:
            assert answer.json()["scores"] == close_to(scores)
        assert all(len(values) in (0, len(solution)) for values, solution in zip(scores, steps, strict=True))

    check()
    assert httpx.get(f"{url}/health", timeout=60, verify=False).json() == {"status": "ok", "waiting": 0}


def test_an_address_of_another_service_is_an_error():
    from starlette.responses import PlainTextResponse

    with serving(PlainTextResponse("<html>welcome</html>"), lifespan="off") as url:
        with pytest.raises(EndpointError, match=r"/format: got an answer in another form"):
            remote(url)
    with serving(scoring_app(HeldScorer())) as url, pytest.raises(EndpointError, match="404.*without a path after it"):
        remote(f"{url}/v1")
    with pytest.raises(ValueError, match="base_url: got .*expected an address such as 'http://localhost:8100'"):
        StepScorer.from_pretrained("http://host?token=secret")


def test_loading_arguments_are_refused_with_an_address(url):
    for arguments in ({"dtype": "float32"}, {"device_map": "auto"}, {"revision": "main"}, {"prm_format": FORMAT}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}: got a value together with the address"):
            StepScorer.from_pretrained(url, **arguments)
    with pytest.raises(ValueError, match="revision"):
        load_format(url, revision="main")
    with pytest.raises(ValueError, match="shard_reward_model=True: got the address"):
        check_sharding(url, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="shard_reward_model=True: got the address"):
        StepRewardFunction(url).shard(Accelerator(cpu=True))


# Secrets


@pytest.mark.parametrize("login", ["", LOGIN], ids=["token", "login"])
def test_secrets_are_sent_but_never_shown(login, monkeypatch, caplog):
    monkeypatch.setenv("ERPRM_SCORER_TOKEN", f"{TOKEN}\n")
    caplog.set_level(logging.DEBUG)
    app = Faulty(
        scoring_app(HeldScorer(), token=None if login else TOKEN), lambda attempt: 503 if attempt == 0 else 401
    )
    with started(app) as server:
        scorer = remote(f"http://{login}{server.address}")
        with pytest.raises(EndpointError, match=r"status 401: .*set \$ERPRM_SCORER_TOKEN") as error:
            scorer.score(QUESTIONS, STEPS)
    assert app.authorizations == {"Basic dXNlcjpwYXNzdzByZA==" if login else f"Bearer {TOKEN}"}
    shown = "".join(traceback.format_exception(error.value)) + caplog.text + scorer.backend.client.base_url
    assert "attempt 1 of 3 failed (status 503" in caplog.text
    assert TOKEN not in shown and "passw0rd" not in shown


def test_a_wrong_token_is_refused_without_a_retry(monkeypatch):
    monkeypatch.setenv("ERPRM_SCORER_TOKEN", "another")
    with serving(scoring_app(HeldScorer(), token=TOKEN)) as url:
        with pytest.raises(EndpointError, match="/format refused a request with status 401"):
            remote(url)


# Every function that takes a reward model


@pytest.fixture(scope="module")
def dial_path(tmp_path_factory):
    """The shipped dial base model as a reward model."""
    folder = tmp_path_factory.mktemp("erprm")
    AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    AutoTokenizer.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    FORMAT.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dial_address(dial_path):
    """Host and port of a server with the dial reward model."""
    with started(scoring_app(StepScorer.from_pretrained(dial_path))) as server:
        yield server.address


@pytest.mark.slow("trains a policy twice")
@pytest.mark.parametrize(
    ("trainer_class", "config_class", "others"),
    [
        (StepGRPOTrainer, StepGRPOConfig, {}),
        (StepPPOTrainer, StepPPOConfig, {"critic": "head"}),
        (StepPPOTrainer, StepPPOConfig, {"critic": "erprm"}),
    ],
    ids=["grpo", "ppo", "ppo with the reward model as critic"],
)
def test_a_policy_update_is_the_same_with_an_address(
    dial_path, dial_address, tmp_path, trainer_class, config_class, others
):
    policies = []
    for reward_model in (dial_path, f"http://{LOGIN}{dial_address}"):
        folder = tmp_path / str(len(policies))
        args = config_class(
            str(folder),
            max_steps=1,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=64,
            learning_rate=1e-3,
            logging_steps=1,
            **CPU_QUIET,
            **others,
        )
        dataset = prompt_dataset(load_questions(dial.make_questions(8, 3)), answers=False)
        trainer = trainer_class(str(dial.BASE_PATH), reward_model, args, dataset)
        trainer.train()
        trainer.save_model()
        log = next(log for log in trainer.state.log_history if "loss" in log)
        policies.append((trainer.model.state_dict(), log["steps/mean_score"], log["loss"]))
    (weights, *numbers), (remote_weights, *remote_numbers) = policies
    assert numbers == remote_numbers
    assert all(torch.equal(weights[name], remote_weights[name]) for name in weights)
    before = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).state_dict()
    assert any(not torch.equal(before[name], remote_weights[name]) for name in before)
    assert any("value_head" in name for name in remote_weights) == (others.get("critic") == "head")
    assert_nowhere("passw0rd", tmp_path)


@pytest.mark.slow("trains a policy")
def test_raft_and_best_of_n_accept_an_address(dial_address, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(RECIPES.parent)
    url = f"http://{LOGIN}{dial_address}"
    assert isinstance(load_scorer(url, Accelerator(cpu=True), 32).backend, RemoteBackend)
    scorer = remote(url)
    assert load_scorer(scorer, Accelerator(cpu=True), 32) is scorer
    questions = [
        "--train_questions_kwargs",
        '{"num_questions": 8, "seed": 1}',
        "--max_steps",
        "1",
        "--use_cpu",
        "true",
    ]
    raft = ["--config", str(RECIPES / "dial" / "train_raft.yaml"), "--reward_model", url, *SMALL_POLICY["train_raft"]]
    raft += ["--eval_questions_kwargs", '{"num_questions": 2, "seed": 2}', "--save_strategy", "no"]
    recipe, arguments = parse("train_raft", [*raft, *questions, "--output_dir", str(tmp_path / "raft")])
    assert recipe.main(*arguments).state.global_step == 1
    manifest = json.loads((tmp_path / "raft" / "round-0" / "manifest.json").read_text())
    assert manifest["config"]["reward_model"].startswith("erprm")
    sampler = TransformersSampler.from_pretrained(str(dial.BASE_PATH), max_new_tokens=48)
    rows = load_questions(dial.make_questions(3, 0))
    samples = {"num_solutions": 2, "num_continuations": 0, "splitter": dial.SEPARATOR, "grading": "exact"}
    samples |= {"answer_pattern": dial.ANSWER_PATTERN, "show_progress": False}
    collect_rollouts(rows, sampler, tmp_path / "samples", **samples)
    out = ["--samples", str(tmp_path / "samples"), "--output_dir", str(tmp_path / "best"), "--report_to", "none"]
    recipe, (arguments,) = parse("best_of_n", [*out, "--reward_models", url])
    assert set(recipe.main(arguments)["models"]) == {f"http://{dial_address}"}
    assert_nowhere("passw0rd", tmp_path)
    assert "passw0rd" not in "".join(capfd.readouterr())


def assert_nowhere(secret, folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files and not [file for file in files if secret.encode() in file.read_bytes()]


# The recipe


@pytest.mark.slow("starts a server's process")
@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_recipe_delivers_all_answers_before_it_ends(source, dial_path, tmp_path, monkeypatch):
    options = ["--reward_model", dial_path, "--port", "0", "--batch_size", "1", "--max_batch", "1"]
    environment = {**os.environ, "ERPRM_SCORER_TOKEN": TOKEN}
    if source == "file":
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        options += ["--token_file", str(tmp_path / "token")]
        environment["ERPRM_SCORER_TOKEN"] = "another"
    monkeypatch.setenv("ERPRM_SCORER_TOKEN", TOKEN)
    yaml = str(RECIPES / "dial" / "serve_scorer.yaml")
    command = [sys.executable, str(RECIPES / "serve_scorer.py"), "--config", yaml, *options]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=RECIPES.parent)
    try:
        while not (address := re.search(r"running on (http://127.0.0.1:\d+)", log.read_text())):
            assert server.poll() is None, log.read_text()
        url = address[1]
        assert httpx.get(f"{url}/format", verify=False).status_code == 401
        questions = [row["question"] for row in dial.make_questions(8, 0)] * 4
        steps = [[f"{index} + 4 = 7"] * 6 for index in range(32)]
        scorer = remote(url, max_attempts=1)
        with ThreadPoolExecutor(12) as clients:
            answers = [clients.submit(scorer.score, questions, steps) for _ in range(12)]
            while True:  # all requests have arrived, and some are not answered yet
                waiting = httpx.get(f"{url}/health", verify=False).json()["waiting"]
                if waiting + sum(answer.done() for answer in answers) >= 12:
                    break
            server.send_signal(signal.SIGTERM)
            assert waiting > 0
            results = [answer.result() for answer in answers]
        assert server.wait(60) == -signal.SIGTERM
    finally:
        server.kill()
        server.wait()
    local = StepScorer.from_pretrained(dial_path, batch_size=1)
    assert results == [local.score(questions, steps)] * 12
    assert "Application shutdown complete" in log.read_text()
    assert TOKEN not in log.read_text() and "Traceback" not in log.read_text()
