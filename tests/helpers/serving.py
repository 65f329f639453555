"""For tests of scoring over HTTP: runs an app in a thread, a scorer whose calls can be held, and an app that fails on
demand."""

import asyncio
import json
import math
import threading
import zlib
from collections import Counter
from contextlib import contextmanager

import uvicorn

from erprm_trl import PRMFormat
from erprm_trl.reward_model.scoring.server import UVICORN


@contextmanager
def serving(app, *, lifespan="on"):
    """Serves the app, yields its address, and ends the server."""
    with started(app, lifespan=lifespan) as server:
        yield server.url


@contextmanager
def started(app, *, lifespan="on"):
    """A server in a thread, with its `url`."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan=lifespan, **UVICORN)
    server = uvicorn.Server(config)
    server.thread = threading.Thread(target=server.run)
    server.thread.start()
    while not server.started:
        assert server.thread.is_alive()
        server.thread.join(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    server.address = f"{host}:{port}"
    server.url = f"http://{server.address}"
    try:
        yield server
    finally:
        server.should_exit = True
        server.thread.join(60)
        assert not server.thread.is_alive()


class HeldScorer:
    """
    A scoring backend that scores a step by its text. Solutions of more than 50 words are too long. A step "poison"
    raises an error, and a step "nan" gives NaN.

    Calls wait while `go` is clear. `calls` holds the number of solutions per call, and `questions` the questions.
    """

    model_name, context_length, weights = "/srv/models/fake", 50, None

    def __init__(self):
        self.prm_format = PRMFormat(aggregation="product")
        self.go, self.calls, self.questions, self.threads = threading.Event(), [], [], set()
        self.go.set()

    def score(self, questions, steps, skip_too_long):
        assert skip_too_long
        self.calls.append(len(steps))
        self.questions += questions
        self.threads.add(threading.get_ident())
        assert self.go.wait(60)
        if any("poison" in solution for solution in steps):
            raise ValueError(f"cannot read {steps}")
        return [expected_scores(question, solution) for question, solution in zip(questions, steps, strict=True)]


def expected_scores(question, steps):
    """The scores that [`HeldScorer`] gives a solution."""
    if len(question.split()) + sum(len(step.split()) for step in steps) > 50:
        return []
    return [math.nan if step == "nan" else zlib.crc32(f"{question}|{step}".encode()) / 2**32 for step in steps]


class Faulty:
    """
    An app in front of another app. `fault(attempt)` returns the fault of an attempt (0, 1, ...) to send a body to
    `/score`: `None` (no fault), `"drop"`, `"hang"`, another text as the answer, or a status. `bodies` holds the
    received bodies. Requests are held until `together` requests have arrived at the same time.
    """

    def __init__(self, app, fault=lambda attempt: None, *, together=0):
        self.app, self.fault, self.together = app, fault, together
        self.attempts, self.bodies, self.authorizations = Counter(), [], set()
        self.in_flight = self.most_at_once = 0
        self._all_here = None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.authorizations.add(dict(scope["headers"]).get(b"authorization", b"").decode())
        if scope["path"] != "/score":
            return await self.app(scope, receive, send)
        self._all_here = self._all_here or asyncio.Event()
        self.in_flight += 1
        self.most_at_once = max(self.most_at_once, self.in_flight)
        if self.in_flight >= self.together:
            self._all_here.set()
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await self._all_here.wait()
        self.in_flight -= 1
        fault = self.fault(self.attempts[body])
        self.attempts[body] += 1
        self.bodies.append(json.loads(body))
        await self._respond(fault, body, scope, receive, send)

    async def _respond(self, fault, body, scope, receive, send):
        from starlette.responses import PlainTextResponse

        if fault is None:
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def again():
                return next(messages, None) or await receive()

            await self.app(scope, again, send)
        elif fault == "hang":
            await receive()  # returns when the client disconnects
        elif fault == "drop":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
            await send({"type": "http.response.body", "body": b'{"scores', "more_body": True})
        elif isinstance(fault, int):
            headers = {"Retry-After": "0"} if fault in (429, 503) else {}
            await PlainTextResponse(f"no, {fault}", fault, headers)(scope, receive, send)
        else:
            await PlainTextResponse(fault)(scope, receive, send)
