"""A completions endpoint without a model. It answers from a hash of the request, and fails on demand."""

import asyncio
import json
import random
import threading
from collections import Counter


def answer(body):
    """The answer to a request. It depends only on the request."""
    rng = random.Random(json.dumps([body["prompt"], body["temperature"], body.get("seed")]))
    steps = [
        f" {rng.randrange(20)} + {rng.randrange(20)} = {rng.randrange(20)} ки" for _ in range(rng.randrange(1, 4))
    ]
    text = "".join(steps) + f" answer {rng.randrange(3)}"
    reason = rng.choice(["stop", "stop", "length"])
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": reason}],
        "usage": {"completion_tokens": len(text.split()) + (reason == "stop")},
    }


class FaultyServer:
    """
    A server in a thread, as in `with FaultyServer(...) as server: server.url`.

    `fault(body, attempt)` returns the fault of an attempt (0, 1, ...) to send a body: `None` (no fault), `"drop"` (the
    connection closes during the answer), `"hang"` (no answer until the client disconnects), `"truncate"` (half of the
    JSON), a status, a pair of status and headers, or a `dict` as the answer. Answers are held back until `together`
    requests have arrived at the same time.
    """

    def __init__(self, fault=lambda body, attempt: None, *, together=0, on_request=lambda: None):
        self.fault, self.together, self.on_request = fault, together, on_request
        self.attempts, self.faults = Counter(), Counter()
        self.bodies, self.authorizations = [], set()
        self.in_flight = self.most_at_once = self.left_by_client = 0

    def __enter__(self):
        import uvicorn

        config = uvicorn.Config(
            self._app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", interface="asgi3"
        )
        self._server = uvicorn.Server(config)
        started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(started),))
        self._thread.start()
        assert started.wait(30)
        host, port = self._server.servers[0].sockets[0].getsockname()
        self.address = f"{host}:{port}"
        self.url = f"http://{self.address}/v1"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        for event in (self._released, self._all_here):
            self._loop.call_soon_threadsafe(event.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self, started):
        self._loop, self._released, self._all_here = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        if self.together == 0:
            self._all_here.set()
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started and not serving.done():
            await asyncio.sleep(0)
        started.set()
        await serving

    async def _app(self, scope, receive, send):
        from starlette.requests import Request

        request = Request(scope, receive)
        assert (scope["method"], scope["path"]) == ("POST", "/v1/completions")
        self.in_flight += 1
        self.most_at_once = max(self.most_at_once, self.in_flight)
        try:
            body = await request.json()
            if self.in_flight >= self.together:
                self._all_here.set()
            await self._all_here.wait()
        finally:
            # Before the answer is sent, because the client may send its next request at once.
            self.in_flight -= 1
        self.bodies.append(body)
        self.authorizations.add(request.headers.get("authorization"))
        self.on_request()
        key = json.dumps(body, sort_keys=True)
        fault = self.fault(body, self.attempts[key])
        self.attempts[key] += 1
        if fault is not None:
            self.faults[fault if isinstance(fault, (str, int)) else str(fault)] += 1
        await self._respond(request, receive, send, body, fault)

    async def _respond(self, request, receive, send, body, fault):
        from starlette.responses import JSONResponse, Response

        content = json.dumps(answer(body)).encode()
        if fault == "hang":
            waiting = [asyncio.create_task(receive()), asyncio.create_task(self._released.wait())]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self.left_by_client += waiting[0] in done
            waiting[1].cancel()
        elif fault == "drop":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content[:20], "more_body": True})
        elif fault == "truncate":
            await Response(content[: len(content) // 2], media_type="application/json")(request.scope, receive, send)
        elif isinstance(fault, dict):
            # Not JSONResponse, which does not accept half of a surrogate pair.
            await Response(json.dumps(fault), media_type="application/json")(request.scope, receive, send)
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            said = f"no, {request.headers.get('authorization')}, not {status}: " + "because " * 100
            error = JSONResponse({"error": {"message": said}}, status, headers)
            await error(request.scope, receive, send)
        else:
            await Response(content, media_type="application/json")(request.scope, receive, send)
