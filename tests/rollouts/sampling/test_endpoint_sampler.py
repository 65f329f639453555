"""Tests sampling over HTTP, with `transformers serve`, and with a server that fails in many ways."""

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from email.utils import formatdate
from time import time

import pytest
from faulty_server import FaultyServer, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from erprm_trl import EndpointSampler, dial
from erprm_trl.io.http_client import UNREADABLE, _retry_after
from erprm_trl.rollouts import (
    CollectConfig,
    EndpointError,
    Prompt,
    PromptFormat,
    Question,
    RolloutDataset,
    TransformersSampler,
    collect_rollouts,
)


ROWS = dial.make_questions(6, seed=0)
PROMPTS = [Prompt(row["question"]) for row in ROWS]
QUESTIONS = [Question(**row) for row in ROWS]
COLLECTION = {
    "num_solutions": 2,
    "num_continuations": 3,
    "splitter": dial.SEPARATOR,
    "grading": "exact",
    "answer_pattern": dial.ANSWER_PATTERN,
    "chunk_size": 2,
    "show_progress": False,
}
KEY = "k3y-that-nobody-may-see"


def sampler_for(url, **arguments):
    quick = {"retry_wait": 0.001, "max_attempts": 3, "request_timeout": 60.0, "max_concurrency": 8}
    return EndpointSampler("pseudo", url, dial.build_tokenizer(), **{**quick, **arguments})


def first_attempt_only(fault):
    return lambda body, attempt: fault if attempt == 0 else None


# transformers serve


@pytest.fixture(scope="module")
def serve_url():
    """`transformers serve` with the base model of dial, in threads of this process."""
    from transformers.cli.serve import Serve
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    serve = Serve(
        force_model=str(dial.BASE_PATH),
        device="cpu",
        host="127.0.0.1",
        port=0,
        log_level="error",
        non_blocking=True,
    )
    while not serve.server.started:
        assert serve._thread.is_alive()
        serve._thread.join(0.02)
    host, port = serve.server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}/v1"
    serve.kill_server()
    serve._thread.join(30)
    transformers_logging.set_verbosity(level)


def serve_sampler(url, **arguments):
    return EndpointSampler(str(dial.BASE_PATH), url, send="text", max_new_tokens=64, **arguments)


@pytest.mark.slow("samples the same prompts twice")
def test_greedy_decoding_equals_transformers(serve_url, dial_policy):
    prompts = [*PROMPTS, *(Prompt(row["question"], f" 3 + 4 = 7 {dial.SEPARATOR}") for row in ROWS)]
    reference = TransformersSampler(*dial_policy, temperature=0, max_new_tokens=64).sample(prompts, 2, seed=0)
    greedy = serve_sampler(serve_url, temperature=0).sample(prompts, 2, seed=0)
    assert greedy == [[completion._replace(token_ids=()) for completion in completions] for completions in reference]
    assert len({completions[0].text for completions in greedy}) > 6


@pytest.mark.slow("loads a server of its own")
def test_seeds_of_transformers_serve_one_at_a_time(serve_url):
    sampler = serve_sampler(serve_url, max_concurrency=1)
    first = sampler.sample(PROMPTS[:2], 4, seed=0)
    assert sampler.sample(PROMPTS[:2], 4, seed=0) == first
    assert sampler.sample(PROMPTS[:2], 4, seed=1) != first
    assert len({completion.text for completion in first[0]}) > 1


def test_the_error_names_fields_that_transformers_serve_rejects(serve_url):
    tokens = EndpointSampler(str(dial.BASE_PATH), serve_url)
    with pytest.raises(EndpointError, match=r"status 400: .*must be a string.*='text'"):
        tokens.sample(PROMPTS, 1, seed=0)
    with pytest.raises(EndpointError, match=r"status 422: .*top_k.*check top_k"):
        serve_sampler(serve_url, top_k=5).sample(PROMPTS, 1, seed=0)


@pytest.mark.slow("runs a recipe")
def test_the_recipe_collects_from_an_endpoint(serve_url, tmp_path):
    config = CollectConfig(
        model_name_or_path=str(dial.BASE_PATH),
        dataset_name="erprm_trl.dial:make_questions",
        dataset_kwargs='{"num_questions": 2, "seed": 0}',
        output_dir=str(tmp_path),
        backend="endpoint",
        base_url=serve_url,
        max_concurrency=4,
        request_timeout=50.0,
        api_key_env="NO_KEY_HERE",
        model_init_kwargs='{"send": "text", "max_attempts": 2}',
        num_continuations=2,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        max_new_tokens=48,
    )
    client = config._sampler().client
    assert (client.max_concurrency, client.request_timeout, client.api_key_env) == (4, 50.0, "NO_KEY_HERE")
    rollouts = config.run()
    assert len(rollouts.rows) == 4 and rollouts.rows[0].sampler["backend"] == "endpoint"
    # The base model is right on more than half of its samples. It would not know words that are joined by mistake.
    assert rollouts.manifest["summary"]["mean_outcome_reward"] > 0
    with pytest.raises(ValueError, match="base_url: got None"):
        CollectConfig("model", "questions", "rollouts", backend="endpoint")


# Requests


def test_one_request_per_completion_with_its_own_seed():
    with FaultyServer() as server:
        sampler = sampler_for(server.url, temperature=0.7, top_p=0.9, max_new_tokens=33, extra_body={"min_p": 0.1})
        completions = sampler.sample(PROMPTS, 5, seed=3)
        bodies = sorted(server.bodies, key=lambda body: body["seed"])
        assert len({body["seed"] for body in bodies}) == len(bodies) == 30
        tokenizer = dial.build_tokenizer()
        texts = {tuple(tokenizer(prompt.question)["input_ids"]): [] for prompt in PROMPTS}
        for body in bodies:
            texts[tuple(body["prompt"])].append(answer(body)["choices"][0]["text"])
        assert [sorted(completion.text for completion in samples) for samples in completions] == [
            sorted(texts[ids]) for ids in texts
        ]
        assert bodies[0].keys() == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "min_p"}
        assert {(body["model"], body["max_tokens"], body["temperature"], body["top_p"]) for body in bodies} == {
            ("pseudo", 33, 0.7, 0.9)
        }
        assert sampler.sample(PROMPTS, 5, seed=3) == completions
        assert sampler.sample([], 5, seed=3) == []
        server.bodies.clear()
        sampler.sample(PROMPTS, 5, seed=4)
        assert not {body["seed"] for body in server.bodies} & {body["seed"] for body in bodies}
        server.bodies.clear()
        sampler_for(server.url, top_k=20).sample(PROMPTS, 1, seed=0)
        assert {body["top_k"] for body in server.bodies} == {20}


def test_greedy_decoding_sends_one_request_per_prompt():
    with FaultyServer() as server:
        completions = sampler_for(server.url, temperature=0).sample(PROMPTS, 4, seed=0)
        assert len(server.bodies) == 6 and all("seed" not in body for body in server.bodies)
        assert [len(samples) for samples in completions] == [4] * 6 and all(
            len(set(samples)) == 1 for samples in completions
        )


def bos_tokenizer(special_tokens):
    """The tokenizer of dial with a BOS token at the start of every text, or with a given `TemplateProcessing`."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = dial.build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=special_tokens, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_text_is_read_as_the_same_tokens(chat):
    tokenizer = bos_tokenizer("<s> $A")
    if chat:
        tokenizer.chat_template = "<s> {{ messages[0].content }} </s> answer"
    expected = PromptFormat(tokenizer).encode(PROMPTS[0])
    assert expected.count(tokenizer.bos_token_id) == 1
    with FaultyServer() as server:
        sampler = EndpointSampler("pseudo", server.url, tokenizer, send="text")
        sampler.sample(PROMPTS[:1], 1, seed=0)
        assert tokenizer(server.bodies[0]["prompt"])["input_ids"] == expected
        closing = EndpointSampler("pseudo", server.url, bos_tokenizer("<s> $A </s>"), send="text")
        with pytest.raises(ValueError, match=r"its \d+ token ids.*Use send='tokens'"):
            closing.sample(PROMPTS[:1], 1, seed=0)


def test_end_length_and_tokens_come_from_the_server():
    choice = {"text": " 7 + 15 = 2", "finish_reason": "stop"}
    bodies = [
        {"choices": [{**choice, "token_ids": [5, 6, 2]}], "usage": {"completion_tokens": 3}},
        {"choices": [choice]},
        {"choices": [{**choice, "finish_reason": "length"}], "usage": None},
    ]
    answers = iter(bodies)
    with FaultyServer(lambda body, attempt: next(answers)) as server:
        sampler = sampler_for(server.url, max_concurrency=1)
        (with_tokens,), (counted,), (cut,) = sampler.sample(PROMPTS[:3], 1, seed=0)
    assert with_tokens == (" 7 + 15 = 2", True, 3, (5, 6, 2))
    assert counted == (" 7 + 15 = 2", True, 6, ())  # five words and the end
    assert cut == (" 7 + 15 = 2", False, 5, ())


def test_half_a_surrogate_pair_can_be_continued():
    choice = {"text": " 7 \ud83d + \ud83d\ude00", "finish_reason": "stop"}
    with FaultyServer(lambda body, attempt: {"choices": [choice]}) as server:
        sampler = sampler_for(server.url)
        ((completion,),) = sampler.sample(PROMPTS[:1], 1, seed=0)
        assert completion.text == " 7 \ufffd + 😀" and completion.num_tokens == 5
        sampler.sample([Prompt(PROMPTS[0].question, completion.text)], 1, seed=0)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)
CHOICES = st.fixed_dictionaries(
    {
        "text": st.text(st.characters()) | JSON_VALUES,
        "finish_reason": st.sampled_from(["stop", "length"]) | JSON_VALUES,
    },
    optional={"stop_reason": JSON_VALUES | st.just("ки"), "token_ids": st.lists(st.integers()) | JSON_VALUES},
)
ANSWERS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, min_size=1, max_size=1) | JSON_VALUES},
    optional={"usage": st.fixed_dictionaries({"completion_tokens": st.integers() | JSON_VALUES}) | JSON_VALUES},
)
HUGE = [
    "[" * 100_000,
    '{"choices": ' + "9" * 5_000 + "}",
    '{"choices": [{"text": "a", "finish_reason": ' * 30_000,
    "",
    "\x00",
]


def test_any_answer_of_a_server_is_a_completion_or_is_retried():
    sampler = sampler_for("http://host/v1")

    @settings(max_examples=settings().max_examples // 2, deadline=None)
    @given(st.text() | st.sampled_from(HUGE) | (ANSWERS | JSON_VALUES).map(json.dumps), st.sampled_from([(), ("ки",)]))
    def check(text, stop):
        try:
            completion = sampler._completion(text, stop)
        except (*UNREADABLE, EndpointError):
            return
        assert isinstance(completion.text, str) and completion.text.encode() is not None
        assert type(completion.finished) is bool and type(completion.num_tokens) is int and completion.num_tokens >= 0
        assert all(type(token) is int and token >= 0 for token in completion.token_ids)

    check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra_body": {"n": 4, "seed": 1, "min_p": 0.1}}, r"extra_body: got \['n', 'seed'\]"),
        ({"top_k": 5, "extra_body": {"top_k": 4}}, r"extra_body: got \['top_k'\]"),
        ({"send": "ids"}, "send: got 'ids'"),
        ({"max_concurrency": 0}, "max_concurrency"),
    ],
)
def test_errors_name_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler_for("http://host/v1", **arguments)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "http://u:secret@host:8o/v1", "ftp://u:secret@host/v1", "http://host/v1?key=secret"]
)
def test_the_error_for_an_invalid_address_does_not_quote_it(url):
    with pytest.raises(ValueError, match="base_url: got .*, expected an address such as") as error:
        sampler_for(url)
    assert "secret" not in "".join(traceback.format_exception(error.value))


# Failures


def some_faults(body, attempt):
    draw = random.Random(f"{json.dumps(body)}/{attempt}").random()
    names = ["drop"] * 10 + [(429, (("Retry-After", "0"),))] * 5 + [500] * 5 + ["truncate"] * 5 + ["hang"] * 2
    fault = dict(enumerate(names)).get(int(draw * 100))
    return (fault[0], dict(fault[1])) if isinstance(fault, tuple) else fault


@pytest.mark.slow("collects against a faulty server")
def test_faults_change_no_row(tmp_path):
    with FaultyServer() as server:
        straight = collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "straight", **COLLECTION)
        num_requests = len(server.bodies)
        assert set(server.attempts.values()) == {1}
    with FaultyServer(some_faults) as server:
        sampler = sampler_for(server.url, max_attempts=30, request_timeout=1.0, max_concurrency=6)
        faulty = collect_rollouts(QUESTIONS, sampler, tmp_path / "faulty", **COLLECTION)
        assert {"drop", 500, "truncate", "hang"} < server.faults.keys() and len(server.faults) == 5
        assert len(server.attempts) == num_requests > 60
        assert len(server.bodies) > num_requests * 1.15
        assert server.most_at_once <= 6
    assert faulty.rows == straight.rows
    assert len({(row.question_index, row.solution_index) for row in faulty.rows}) == len(faulty.rows) == 12


def test_concurrency_reaches_its_limit_and_does_not_exceed_it():
    with FaultyServer(together=16) as server:
        sampler_for(server.url, max_concurrency=16).sample(PROMPTS, 20, seed=0)
        assert server.most_at_once == 16 and len(server.bodies) == 120


@pytest.mark.slow("waits for many retries")
@pytest.mark.parametrize(
    "fault",
    [
        "drop",
        "truncate",
        408,
        409,
        425,
        429,
        502,
        {"error": "said with status 200"},
        {"choices": []},
        {"choices": [{"text": None, "finish_reason": "stop"}]},
        {"choices": [{"text": "half of", "finish_reason": "abort"}]},
        ["a", "list"],
        {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": "5"}},
        {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": -1}},
        {"choices": [{"text": "a", "finish_reason": "stop", "token_ids": "12"}]},
        {"choices": [{"text": "a", "finish_reason": "stop", "token_ids": [True, 1.5]}]},
        (429, {"Retry-After": "9" * 400}),
    ],
    ids=str,
)
def test_failures_that_are_retried(fault):
    fault = {"choices": fault} if isinstance(fault, list) else fault
    with FaultyServer(first_attempt_only(fault)) as server:
        completions = sampler_for(server.url).sample(PROMPTS[:2], 2, seed=0)
        assert set(server.attempts.values()) == {2}
    with FaultyServer() as server:
        assert sampler_for(server.url).sample(PROMPTS[:2], 2, seed=0) == completions


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "too long"), (401, r"\$THE_KEY"), (404, "ends with /v1"), (307, "top_k"), (422, "extra_body")],
)
def test_failures_that_are_not_retried_cancel_the_other_requests(status, remedy):
    once = threading.Event()

    def fault(body, attempt):
        if once.is_set():
            return "hang"
        once.set()
        return status

    with FaultyServer(fault, together=8) as server:
        # If the others were not cancelled, they would be retried after the timeout.
        sampler = sampler_for(server.url, request_timeout=10.0, api_key_env="THE_KEY")
        with pytest.raises(EndpointError, match=rf"status {status}: .*because.*Remedy: .*{remedy}") as error:
            sampler.sample(PROMPTS, 4, seed=0)
        assert server.url + "/completions" in str(error.value) and len(str(error.value)) < 800
    # Checked after the server has ended, because the client may finish before all requests are recorded.
    assert len(server.bodies) == 8 and set(server.attempts.values()) == {1}
    assert server.left_by_client == 7


def test_a_server_that_stays_down_raises_one_clear_error():
    with FaultyServer(lambda body, attempt: 503) as server:
        with pytest.raises(EndpointError, match=r"/v1/completions .*3 attempts .*status"):
            sampler_for(server.url).sample(PROMPTS, 2, seed=0)
        assert max(server.attempts.values()) == 3
        url = server.url
    with pytest.raises(EndpointError, match="in 3 attempts .*The last attempt: ConnectError"):
        sampler_for(url).sample(PROMPTS, 2, seed=0)


def test_a_server_that_hangs_raises_one_clear_error():
    with FaultyServer(lambda body, attempt: "hang") as server:
        with pytest.raises(EndpointError, match="in 2 attempts .*no answer within 0.1 s"):
            sampler_for(server.url, request_timeout=0.1, max_attempts=2).sample(PROMPTS[:2], 1, seed=0)


def test_retry_after_is_respected(caplog):
    caplog.set_level(logging.INFO)
    with FaultyServer(first_attempt_only((429, {"Retry-After": "1"}))) as server:
        sampler_for(server.url).sample(PROMPTS[:1], 1, seed=0)
        assert "The next attempt is in 1.0 s" in caplog.text
    with FaultyServer(first_attempt_only((429, {"Retry-After": "3600"}))) as server:
        with pytest.raises(EndpointError, match="in 1 attempts .*status 429"):
            sampler_for(server.url).sample(PROMPTS[:1], 1, seed=0)
    assert _retry_after(formatdate(time() + 100, usegmt=True)) == pytest.approx(100, abs=10)
    assert [_retry_after(value) for value in (None, "", "soon", "-3", "nan", formatdate(0), "9" * 400, "7")] == [
        0
    ] * 7 + [7]


def test_waiting_does_not_change_the_global_random_state():
    random.seed(0)
    before = random.getstate()
    with FaultyServer(first_attempt_only(500)) as server:
        sampler_for(server.url).sample(PROMPTS, 2, seed=0)
    assert random.getstate() == before


# Secrets


def leaked(secret, error, caplog, folder):
    texts = ["".join(traceback.format_exception(error)), caplog.text, *(path.read_text() for path in folder.iterdir())]
    return [text for text in texts if secret in text]


@pytest.mark.slow("runs a recipe")
@pytest.mark.parametrize("login", ["", "user:passw0rd@"], ids=["key", "login"])
def test_the_key_is_sent_and_never_shown(login, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    sent = "Basic dXNlcjpwYXNzdzByZA==" if login else f"Bearer {KEY}"
    with FaultyServer(first_attempt_only(500)) as server:
        sampler = sampler_for(f"http://{login}{server.address}/v1/", api_key_env="THE_KEY")
        data = collect_rollouts(QUESTIONS[:2], sampler, tmp_path, **COLLECTION)
        assert server.authorizations == {sent}
        assert len(data.rows) == 4 and "attempt 1 of 3 failed (status 500" in caplog.text
        assert server.address not in json.dumps(data.manifest)
    with FaultyServer(lambda body, attempt: 401) as server:
        refused = sampler_for(f"http://{login}{server.address}/v1", api_key_env="THE_KEY")
        with pytest.raises(EndpointError, match="status 401") as error:
            refused.sample(PROMPTS, 1, seed=0)
    for secret in (KEY, "passw0rd"):
        assert not leaked(secret, error.value, caplog, tmp_path)
    # The searched texts do contain other fields of the request.
    assert leaked("because", error.value, caplog, tmp_path) and leaked("pseudo", error.value, caplog, tmp_path)


def test_without_a_key_no_header_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultyServer() as server:
        sampler_for(server.url).sample(PROMPTS, 1, seed=0)
        assert server.authorizations == {None}
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nsecond")
        with pytest.raises(ValueError, match=r"\$OPENAI_API_KEY: got characters") as error:
            sampler_for(server.url).sample(PROMPTS, 1, seed=0)
    assert KEY not in str(error.value)


# Event loops, interrupts and restarts


def test_sampling_works_inside_a_running_event_loop():
    with FaultyServer() as server:
        sampler = sampler_for(server.url)

        async def cell():
            return sampler.sample(PROMPTS, 2, seed=0)

        assert asyncio.run(cell()) == sampler.sample(PROMPTS, 2, seed=0)


@pytest.mark.slow("interrupts itself")
def test_an_interrupt_leaves_no_thread_and_no_request():
    all_asked, interrupted = threading.Event(), threading.Event()

    def raise_once(*_):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt():
        all_asked.wait()
        # A signal that meets the main thread on its way into a lock waits there too: another one wakes it.
        while not interrupted.wait(0.1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def on_request():
        if len(server.bodies) == 8:
            all_asked.set()

    former = signal.signal(signal.SIGINT, raise_once)
    try:
        with FaultyServer(lambda body, attempt: "hang", on_request=on_request) as server:
            before = threading.active_count()
            interrupting = threading.Thread(target=interrupt, daemon=True)
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                sampler_for(server.url).sample(PROMPTS, 4, seed=0)
            interrupting.join()
            assert threading.active_count() == before
        assert server.left_by_client == len(server.bodies) == 8
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.slow("collects several times")
def test_a_failure_writes_nothing_and_another_server_continues(tmp_path):
    def dies(body, attempt):
        return 503 if len(server.bodies) > 60 else None

    with FaultyServer(dies) as server:
        with pytest.raises(EndpointError):
            collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "resumed", **COLLECTION)
    assert 0 < len(RolloutDataset(tmp_path / "resumed").rows) < 12
    with FaultyServer() as server:
        resumed = collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "resumed", **COLLECTION)
        straight = collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "straight", **COLLECTION)
    assert resumed.rows == straight.rows


@pytest.mark.slow("starts a process and kills it")
def test_a_killed_collection_resumes(tmp_path):
    code = (
        "import json, sys\n"
        "from erprm_trl import EndpointSampler, dial\n"
        "from erprm_trl.rollouts import Question, collect_rollouts\n"
        "questions = [Question(**row) for row in dial.make_questions(6, seed=0)]\n"
        "sampler = EndpointSampler('pseudo', sys.argv[1], dial.build_tokenizer(), max_concurrency=8)\n"
        "collect_rollouts(questions, sampler, sys.argv[2], **json.loads(sys.argv[3]))\n"
    )

    def kill():
        if len(server.bodies) == 60:
            os.kill(child.pid, signal.SIGKILL)

    with FaultyServer(lambda body, attempt: None, on_request=kill) as server:
        arguments = [server.url, str(tmp_path / "killed"), json.dumps(COLLECTION)]
        child = subprocess.Popen([sys.executable, "-c", code, *arguments])
        assert child.wait(200) == -signal.SIGKILL
    assert 0 < len(RolloutDataset(tmp_path / "killed").rows) < 12
    with FaultyServer() as server:
        killed = collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "killed", **COLLECTION)
        straight = collect_rollouts(QUESTIONS, sampler_for(server.url), tmp_path / "straight", **COLLECTION)
    assert killed.rows == straight.rows
