"""Tests proxies and the logging of retries. The tests of samplers and scorers cover faulty servers."""

import logging
import threading
import traceback
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faulty_server import FaultyServer

from erprm_trl.io import EndpointError, http_client
from erprm_trl.io.http_client import EndpointClient, Service, proxy_of


SERVICE = Service(
    "http://localhost:8000",
    "scores",
    frozenset({503}),
    {403: "put a token into ${api_key_env}"},
    "look",
    "Look at it.",
)
BODY = {"prompt": "q", "temperature": 1.0}


class RefusingProxy(BaseHTTPRequestHandler):
    """A proxy that refuses every host with status 403."""

    def do_POST(self):
        self.server.asked[self.path] += 1
        self.send_response(403)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"denied")

    do_CONNECT = do_POST

    def log_message(self, *arguments):
        pass


@pytest.fixture
def proxy(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), RefusingProxy)
    server.asked = Counter()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://ada:passw0rd@127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client_of(url, **options):
    options = {"max_attempts": 3, "max_retry_seconds": 60.0, "retry_wait": 0.001, **options}
    return EndpointClient(SERVICE, url, 4, 10.0, *options.values(), "THE_TOKEN")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_server_on_this_machine_is_reached_without_the_proxy(proxy, host):
    with FaultyServer() as server:
        url = server.url.replace("127.0.0.1", host)
        assert len(client_of(url).post_all("/completions", [BODY] * 3, str)) == 3
    assert not proxy.asked


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_error_names_the_proxy_that_refuses_a_request(proxy, scheme):
    with pytest.raises(EndpointError) as failure:
        client_of(f"{scheme}://scores.invalid").post_all("/score", [BODY], str)
    message = str(failure.value)
    shown = "".join(traceback.format_exception(failure.value))
    assert "403" in message and f"through the proxy http://127.0.0.1:{proxy.server_port}, which the env" in message
    assert "add scores.invalid to NO_PROXY" in message and "passw0rd" not in shown
    assert set(proxy.asked.values()) == {1}  # a refused request is not retried


def test_without_a_proxy_the_error_does_not_mention_one():
    with FaultyServer(lambda body, attempt: 403) as server:
        with pytest.raises(EndpointError, match=r"Remedy: put a token into \$THE_TOKEN\.$"):
            client_of(server.url).post_all("/completions", [BODY], str)


@pytest.mark.parametrize(
    ("url", "no_proxy", "expected"),
    [
        ("http://scores.invalid:8100", "", "http://proxy:3128"),
        ("http://scores.invalid:8100", "invalid", None),
        ("http://scores.invalid:8100", "other.invalid,.example", "http://proxy:3128"),
        ("http://scores.invalid:8100", "*", None),
        ("https://scores.invalid", "", "http://proxy:3129"),
        ("http://127.8.0.1:8100", "", None),
        ("http://[::1]:8100", "", None),
        ("http://api.localhost:8100", "", None),
        ("http://10.0.0.7:8100", "", "http://proxy:3128"),
    ],
)
def test_the_proxy_for_an_address(url, no_proxy, expected, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", "proxy:3128")  # without a scheme, which is also allowed
    monkeypatch.delenv("https_proxy")
    monkeypatch.setenv("all_proxy", "http://proxy:3129")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxy_of(url) == expected


def test_retries_are_visible_and_do_not_flood_the_log(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    with FaultyServer(lambda body, attempt: 503 if attempt < 2 else None) as server:
        client = client_of(server.url)
        assert len(client.post_all("/completions", [{**BODY, "seed": seed} for seed in range(8)], str)) == 8
        levels = [record.levelno for record in caplog.records if "failed" in record.getMessage()]
        assert levels.count(logging.WARNING) == 1 and len(levels) == 16
        assert "/completions: attempt 1 of 3 failed (status 503" in caplog.text
        monkeypatch.setattr(http_client, "SECONDS_BETWEEN_WARNINGS", 0.0)
        client.post_all("/completions", [{**BODY, "seed": 9}], str)
    assert [record.levelno for record in caplog.records if "failed" in record.getMessage()][16:] == [
        logging.WARNING
    ] * 2
