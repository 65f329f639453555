"""The scoring server: its answers, its batching of requests, its refusals, and its shutdown."""

import asyncio
import json
import logging
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import HeldScorer, expected_scores, serving, started

from erprm_trl.reward_model.scoring import server as scoring_connections
from erprm_trl.reward_model.scoring import server as scoring_server
from erprm_trl.reward_model.scoring.server import scoring_app


SECRET = "Tom has seven unspeakable apples"
TOKEN = "t0ken-of-the-server"


def body(*steps, question="Tom ?", **more):
    """The body of a request with solutions to one question."""
    return {"questions": [question] * len(steps), "steps": [list(solution) for solution in steps], **more}


def post(url, content, **options):
    # Creating a TLS context takes longer than a request, and there is no TLS here.
    options |= {"content": content} if not isinstance(content, (dict, list)) else {"json": content}
    return httpx.post(f"{url}/score", timeout=60, verify=False, **options)


def get(url, **options):
    return httpx.get(url, timeout=60, verify=False, **options)


def until_waiting(url, count):
    while get(f"{url}/health").json()["waiting"] != count:
        pass


def until_queued(app, count):
    """Waits until `count` requests are read and queued. (`/health` also counts requests that are arriving.)"""
    jobs = app.routes[-1].endpoint.__self__._batches._jobs
    while len(jobs) != count:
        pass


@pytest.fixture(scope="module")
def url():
    """A server with small limits."""
    app = scoring_app(HeldScorer(), max_body_bytes=2000, max_solutions=3, max_steps=4)
    with serving(app) as address:
        yield address


def test_health_format_and_scores_are_served(url):
    assert get(f"{url}/health").json() == {"status": "ok", "waiting": 0}
    served = get(f"{url}/format").json()
    assert served == {
        "prm_format": json.loads(HeldScorer().prm_format.to_json()),
        "model": "fake",  # and not its path
        "max_length": 50,
        "max_body_bytes": 2000,
        "max_solutions": 3,
        "max_steps": 4,
    }
    answer = post(url, body(["a", "b"], [], ["c"]))
    assert answer.json() == {"scores": [expected_scores("Tom ?", solution) for solution in (["a", "b"], [], ["c"])]}
    assert post(url, {"questions": [], "steps": []}).json() == {"scores": []}
    assert post(url, body(["a"], ["word " * 50], skip_too_long=True)).json()["scores"][1] == []


def test_the_context_length_is_the_default_of_max_steps():
    with serving(scoring_app(HeldScorer())) as url:
        assert get(f"{url}/format").json()["max_steps"] == 50


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (b"", 400, "invalid JSON"),
        (b"{", 400, "invalid JSON"),
        (b"\xff\xfe\xfa", 400, "invalid JSON"),
        (b"[" * 1900, 400, "invalid JSON"),
        (b'{"questions": [' + b"9" * 1900 + b'], "steps": []}', 422, r"questions\[0\]|1 questions for 0"),
        ([], 422, "got other fields, expected questions, steps"),
        ({"questions": []}, 422, "got other fields, expected questions, steps"),
        (body(["a"], secret=SECRET), 422, "got other fields"),
        ({"questions": SECRET, "steps": []}, 422, "questions: got str, expected a list"),
        ({"questions": [], "steps": {}}, 422, "steps: got dict, expected a list"),
        (body(["a"], skip_too_long="yes"), 422, "skip_too_long: got str"),
        ({"questions": [SECRET], "steps": []}, 422, "got 1 questions for 0 solutions"),
        (body(*[["a"]] * 4), 422, "got 4 solutions, expected at most 3"),
        ({"questions": ["a", None], "steps": [[], []]}, 422, r"questions\[1\]: got NoneType, expected a string"),
        ({"questions": ["a", "b"], "steps": [[], SECRET]}, 422, r"steps\[1\]: got str, expected a list of strings"),
        (body(["a"], ["b", SECRET, 3.5]), 422, r"steps\[1\]\[2\]: got float, expected a string"),
        (body(["a"], ["a"] * 5), 422, r"steps\[1\]: got 5 steps, expected at most 4"),
        (b'{"questions": ["a"], "steps": [["\\ud800"]]}', 422, r"steps\[0\]: got a lone surrogate"),
        (body(["a"], [f"{SECRET} " * 11]), 422, r"steps\[1\]: .* context of 50"),
        (body(["a"] * 1, ["x" * 2000]), 413, "more than 2000 bytes"),
        (body(["a", "nan"]), 500, r"steps\[0\]\[1\]: the reward model returned nan"),
        (body(["poison", SECRET]), 500, "The reward model failed with ValueError"),
    ],
    ids=str,
)
def test_refusals_name_the_row_without_quoting_text(url, content, status, error, caplog):
    caplog.set_level(logging.DEBUG)
    answer = post(url, content)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert re.search(error, answer.json()["error"])
    assert SECRET not in answer.text and SECRET not in caplog.text
    assert "poison" not in caplog.text and ("serving.py" in caplog.text) == ("failed" in error)


def test_body_bytes_are_counted_while_they_arrive(url):
    sent = []

    def chunks():
        for _ in range(100):
            sent.append(b" " * 100)
            yield sent[-1]

    assert post(url, chunks()).status_code == 413
    whole = json.dumps(body(["a"])).encode()
    assert post(url, whole + b" " * (2000 - len(whole))).status_code == 200
    assert post(url, whole + b" " * (2001 - len(whole))).status_code == 413


def test_a_body_that_does_not_arrive_gets_status_408(monkeypatch):
    monkeypatch.setattr(scoring_server, "BODY_SECONDS", 0.05)
    with started(scoring_app(HeldScorer())) as server:
        with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=60) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in connection.recv(1000)


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\n"
EMPTY = b'{"questions": [], "steps": []}'
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"1f40\r\n" + b"y" * 8000 + b"\r\n"


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def until_hung_up_on(url, sent, more=b"", times=200_000):
    """Sends `more` repeatedly, and returns the server's answer before it closes the connection."""
    got = b""
    with connected(url) as connection:
        try:
            connection.sendall(sent)
            for _ in range(times if more else 0):
                connection.sendall(more)
            assert not more, "The server read everything."
            while data := connection.recv(65536):
                got += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    return got


def is_well(url):
    return get(f"{url}/health").json() == {"status": "ok", "waiting": 0}


@pytest.mark.parametrize("headers", [b"X-More: " + b"y" * 8000 + b"\r\n", b"y" * 8000], ids=["many", "one"])
def test_the_size_of_headers_is_limited(headers):
    """The limit applies to all clients, because the token is only known after the headers."""
    with serving(scoring_app(HeldScorer(), token=TOKEN)) as url:
        until_hung_up_on(url, HEAD + b"X-More: ", headers, times=2000)
        assert is_well(url)


ENDLESS = {
    "nothing": (b"", b""),
    "a first line": (b"POST /sc", b""),
    "headers": (HEAD, b""),
    "body without a token": (HEAD + CHUNKED, CHUNK),
    "body without a token and with a wrong length": (HEAD + b"Content-Length: 1000000000000\r\n\r\n", b"y" * 8000),
    "body too large": (HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n" + CHUNKED, CHUNK),
}


def test_connections_that_never_begin_or_end_a_request_are_closed(monkeypatch):
    with serving(scoring_app(HeldScorer(), max_body_bytes=2000, token=TOKEN)) as url:
        for sent, more in ENDLESS.values():
            with monkeypatch.context() as patch:
                patch.setattr(scoring_connections, "IDLE_SECONDS", 0.1)
                until_hung_up_on(url, sent, more)
            assert is_well(url)


def test_a_connection_with_a_running_request_is_not_closed():
    scorer = HeldScorer()
    scorer.go.clear()
    with started(scoring_app(scorer)) as server, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(post, server.url, body(["a"]))
        until_waiting(server.url, 1)
        for connection in list(server.server_state.connections):
            for last in (None, connection.cycle):  # a new connection, and one with an answered request
                connection.loop.call_soon_threadsafe(connection._close_if_none_began, last)
        until_waiting(server.url, 1)
        scorer.go.set()
        assert answer.result().status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        HEAD + b"Content-Length: -3\r\n\r\n",
        HEAD + b"Content-Length: 1e9\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"X-Null: a\0b\r\n\r\n",
        HEAD + b"Content-Length: 1\r\n\r\n" + EMPTY,  # the rest is not a request
        b"POST /score HTTP/9\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"\xff" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" * 10 + b"\r\n",
        b"GET /score HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
    ids=repr,
)
def test_invalid_requests_are_refused(sent, url):
    with connected(url) as connection:
        connection.sendall(sent)
        assert connection.recv(1000).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ", b"HTTP/1.1 501 "))
    assert is_well(url)


def test_a_truncated_body_is_ignored(url):
    with connected(url) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + EMPTY)
        until_waiting(url, 1)
    until_waiting(url, 0)


def test_other_paths_and_methods_are_refused(url):
    assert get(f"{url}/").status_code == 404 and "error" in get(f"{url}/").json()
    assert get(f"{url}/score").status_code == 405


def test_a_token_is_required_if_it_is_set():
    with serving(scoring_app(HeldScorer(), token=TOKEN)) as url:
        for headers in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "Bearer"},
        ):
            refused = get(f"{url}/format", headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in refused.text
            assert post(url, body(["a"]), headers=headers).status_code == 401
        headers = {"Authorization": f"bearer {TOKEN}"}
        assert get(f"{url}/format", headers=headers).status_code == 200
        assert post(url, body(["a"]), headers=headers).status_code == 200
        assert get(f"{url}/health").status_code == 200


def test_invalid_limits_and_tokens_are_errors():
    for name in ("max_body_bytes", "max_solutions", "max_steps", "max_waiting", "max_batch"):
        with pytest.raises(ValueError, match=f"{name} of the scoring server: got 0"):
            scoring_app(HeldScorer(), **{name: 0})
    for token in ("", "two words", "né", "a\nb"):
        with pytest.raises(ValueError, match="expected printable ASCII") as error:
            scoring_app(HeldScorer(), token=token)
        assert not token or token not in str(error.value)


@pytest.mark.parametrize(
    ("max_batch", "calls"), [(1024, [1, 24]), (6, [1, 6, 6, 6, 6]), (5, [1, *[4] * 6]), (1, [1, *[2] * 12])]
)
def test_waiting_requests_are_scored_together(max_batch, calls):
    scorer = HeldScorer()
    scorer.go.clear()
    app = scoring_app(scorer, max_batch=max_batch)
    with serving(app) as url, ThreadPoolExecutor(16) as clients:
        first = clients.submit(post, url, body(["first"]))
        while not scorer.calls:
            pass
        others = [clients.submit(post, url, body([f"{i}"], ["b", "c"], question=f"{i} ?")) for i in range(12)]
        until_queued(app, 12)
        scorer.go.set()
        assert first.result().json() == {"scores": [expected_scores("Tom ?", ["first"])]}
        for i, future in enumerate(others):
            asked = [f"{i}"], ["b", "c"]
            assert future.result().json() == {"scores": [expected_scores(f"{i} ?", solution) for solution in asked]}
    assert scorer.calls == calls
    assert len(scorer.threads) == 1


def test_a_failing_request_does_not_affect_other_requests():
    scorer = HeldScorer()
    scorer.go.clear()
    requests = [["a"], ["poison"], ["nan"], ["word " * 60], ["b"]]
    app = scoring_app(scorer)
    with serving(app) as url, ThreadPoolExecutor(8) as clients:
        first = clients.submit(post, url, body(["first"]))
        while not scorer.calls:
            pass
        answers = []
        for index, steps in enumerate(requests):
            answers.append(clients.submit(post, url, body(steps)))
            until_queued(app, index + 1)
        scorer.go.set()
        assert first.result().status_code == 200
        assert [answer.result().status_code for answer in answers] == [200, 500, 500, 422, 200]
        for steps, answer in ((requests[0], answers[0]), (requests[4], answers[4])):
            assert answer.result().json() == {"scores": [expected_scores("Tom ?", steps)]}
    assert scorer.calls == [1, 5, 1, 1, 1, 1, 1]


def test_too_many_waiting_requests_get_status_503():
    scorer = HeldScorer()
    scorer.go.clear()
    with serving(scoring_app(scorer, max_waiting=2)) as url, ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(post, url, body(["a"])) for _ in range(2)]
        until_waiting(url, 2)
        refused = post(url, body(["a"]))
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "2 requests are waiting" in refused.json()["error"]
        scorer.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert post(url, body(["a"])).status_code == 200


def test_requests_of_disconnected_clients_are_not_scored():
    scorer = HeldScorer()
    scorer.go.clear()
    with started(scoring_app(scorer)) as server, ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, server.url, body(["a"], question="first ?"))
        while not scorer.calls:
            pass
        content = json.dumps(body(["a"], question="left ?")).encode()
        with socket.create_connection(server.servers[0].sockets[0].getsockname()) as connection:
            connection.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content
            )
            until_waiting(server.url, 2)
        last = clients.submit(post, server.url, body(["a"], question="last ?"))
        until_waiting(server.url, 3)
        scorer.go.set()
        assert first.result().status_code == last.result().status_code == 200
        until_waiting(server.url, 0)
    assert scorer.questions == ["first ?", "last ?"]


def test_shutdown_waits_for_the_answers_of_all_requests():
    scorer = HeldScorer()
    scorer.go.clear()
    with started(scoring_app(scorer, max_batch=1)) as server, ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(post, server.url, body([f"{i}"])) for i in range(4)]
        until_waiting(server.url, 4)
        server.should_exit = True
        while server.servers[0].sockets:  # once closed, new connections are refused
            server.thread.join(0.01)
        with pytest.raises(httpx.ConnectError):
            post(server.url, body(["late"]))
        scorer.go.set()
        answers = [future.result().json()["scores"][0] for future in waiting]
        assert answers == [expected_scores("Tom ?", [f"{i}"]) for i in range(4)]
        server.thread.join(60)
    (worker,) = scorer.threads
    assert worker not in {thread.ident for thread in threading.enumerate()}


def test_the_apps_shutdown_waits_for_the_scorer():
    """The app must wait, because a server may not wait for its connections."""
    scorer = HeldScorer()
    scorer.go.clear()
    app = scoring_app(scorer, max_batch=1)

    async def run():
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
        async with client, app.router.lifespan_context(app):
            tasks = [asyncio.create_task(client.post("/score", json=body(["a"]))) for _ in range(4)]
            while (await client.get("/health")).json()["waiting"] != 4:
                await asyncio.sleep(0)
            scorer.go.set()
        assert len(scorer.calls) == 4
        return [(await task).status_code for task in tasks]

    assert asyncio.run(run()) == [200] * 4


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {
        "questions": st.lists(st.text() | JSON_VALUES, max_size=4),
        "steps": st.lists(st.lists(st.text() | JSON_VALUES), max_size=4),
    },
    optional={"skip_too_long": st.booleans() | JSON_VALUES, "more": JSON_VALUES},
)


@pytest.mark.slow("hundreds of hostile requests")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=3000) | (NEARLY | JSON_VALUES).map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_an_answer(url, content):
    answer = post(url, content)
    assert answer.status_code in (200, 400, 413, 422)
    assert list(answer.json()) == (["scores"] if answer.status_code == 200 else ["error"])
    assert get(f"{url}/health").json() == {"status": "ok", "waiting": 0}
