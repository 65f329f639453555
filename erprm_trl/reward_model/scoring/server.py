"""A scoring server: an ASGI app that returns step scores over HTTP, and the arguments to run it with uvicorn.

Start it with `erprm serve`, or run [`scoring_app`] with the arguments `UVICORN`. One thread scores.
Requests that arrive meanwhile are scored together in the next call. Requests are limited in size and time: the
protocol in `UVICORN` limits headers and idle connections, and the app limits bodies. Logs and errors never contain
text from a request.
"""

import asyncio
import hmac
import json
import logging
import math
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from ...io.redaction import redacted
from .backend import ScoringBackend
from .scorer import StepScorer


try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("A scoring server needs starlette: pip install 'erprm_trl[serve]'.") from error


try:
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("A scoring server needs uvicorn: pip install 'erprm_trl[serve]'.") from error


logger = logging.getLogger(__name__)

BODY_SECONDS = 60.0  # maximum time until the whole body has arrived
IDLE_SECONDS = 30.0  # maximum time until a request begins on a connection
RETRY_AFTER_SECONDS = 1
DEFAULT_MAX_STEPS = 4096


def scoring_app(
    scorer: StepScorer | ScoringBackend,
    *,
    max_body_bytes: int = 8 * 2**20,
    max_solutions: int = 1024,
    max_steps: int | None = None,
    max_waiting: int = 64,
    max_batch: int = 1024,
    token: str | None = None,
) -> Starlette:
    """
    Returns an ASGI app with `GET /health`, `GET /format` and `POST /score`. The last takes
    `{"questions": [...], "steps": [[...], ...], "skip_too_long": false}` and returns `{"scores": [[...], ...]}`.

    A refused request gets `{"error": "..."}` and one of these statuses:

    - 400: the body is not JSON.
    - 401: the token is missing or wrong.
    - 408: the body does not arrive in time.
    - 413: the body is too large.
    - 422: the body has missing, unknown or invalid fields.
    - 500: the reward model fails or returns NaN.
    - 503 with `Retry-After`: too many requests are waiting.

    Args:
        scorer ([`StepScorer`] or [`ScoringBackend`]):
            The reward model. One thread of the app calls it. No other thread may use it at the same time.
        max_body_bytes (`int`, *optional*, defaults to 8 MiB):
            Maximum request body, in bytes.
        max_solutions (`int`, *optional*, defaults to `1024`):
            Maximum number of solutions per request.
        max_steps (`int`, *optional*):
            Maximum number of steps per solution. Defaults to the model's context length, because a step has at least
            one token.
        max_waiting (`int`, *optional*, defaults to `64`):
            Maximum number of requests that are being received, waiting or being scored at a time. Together with
            `max_body_bytes` it limits the memory of all requests.
        max_batch (`int`, *optional*, defaults to `1024`):
            Maximum number of solutions per call of the reward model. Waiting requests are combined up to this number
            and never split. Combining them can change the last bits of scores. Set 1 to combine nothing.
        token (`str`, *optional*):
            Bearer token that `/format` and `/score` require. Without it every client is served.

    Raises:
        `ValueError`: for a limit below 1, or a token that cannot be sent in an HTTP header.
    """
    scorer = StepScorer.of(scorer)
    if max_steps is None:
        max_steps = scorer.context_length or DEFAULT_MAX_STEPS
    limits = {"max_body_bytes": max_body_bytes, "max_solutions": max_solutions, "max_steps": max_steps}
    for name, limit in {**limits, "max_waiting": max_waiting, "max_batch": max_batch}.items():
        if limit < 1:
            raise ValueError(f"{name} of the scoring server: got {limit}, expected at least 1. Raise it.")
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            "token of the scoring server: got a token that HTTP headers cannot hold, expected printable ASCII "
            "characters without a space. Choose another token."
        )
    batches = _Batches(scorer, max_batch)
    server = _ScoringServer(scorer, batches, limits, max_waiting, token)

    @asynccontextmanager
    async def lifespan(app):
        yield
        await batches.close()

    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/format", server.format),
            Route("/score", server.score, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _as_json},
        lifespan=lifespan,
    )


class _ScoringServer:
    """Handles the requests of each route."""

    def __init__(
        self, scorer: StepScorer, batches: "_Batches", limits: dict[str, int], max_waiting: int, token: str | None
    ):
        self._batches, self._limits, self._max_waiting, self._token = batches, limits, max_waiting, token
        self._waiting = 0
        self._context_length = scorer.context_length
        self._format = {
            "prm_format": scorer.prm_format.to_dict(),
            "model": redacted(scorer.model_name),
            "max_length": scorer.context_length,
            **limits,
        }

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": self._waiting})

    async def format(self, request: Request) -> Response:
        self._check_token(request)
        return JSONResponse(self._format)

    async def score(self, request: Request) -> Response:
        self._check_token(request)
        if self._waiting >= self._max_waiting:
            message = f"{self._waiting} requests are waiting, expected less than {self._max_waiting}. Try again later."
            raise HTTPException(503, message, {"Retry-After": str(RETRY_AFTER_SECONDS)})
        self._waiting += 1
        try:
            body = await self._body(request)
            questions, steps, skip_too_long = _read(body, self._limits["max_solutions"], self._limits["max_steps"])
            scores = await self._batches.score(questions, steps, request.is_disconnected)
        except ClientDisconnect:
            return Response(status_code=400)  # the client has disconnected and does not read it
        finally:
            self._waiting -= 1
        _check_scores(scores, steps, skip_too_long, self._context_length)
        return JSONResponse({"scores": scores})

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, sent_token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent_token.strip().encode(), self._token.encode()):
            message = "The bearer token is missing or wrong. Send `Authorization: Bearer ...` with the server's token."
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        body, most = bytearray(), self._limits["max_body_bytes"]
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        message = f"The body: got more than {most} bytes. Send fewer solutions per request."
                        raise HTTPException(413, message)
        except TimeoutError:
            message = f"The body: got only a part in {BODY_SECONDS:g} s, expected the whole body. Send it again."
            raise HTTPException(408, message) from None
        return bytes(body)


def _as_json(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _read(body: bytes, max_solutions: int, max_steps: int) -> tuple[list[str], list[list[str]], bool]:
    """Parses the questions, the steps and `skip_too_long` of a request. An invalid body gets status 400 or 422."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        message = "The body: got invalid JSON, expected an object with questions and steps. Send JSON."
        raise HTTPException(400, message) from None
    names = {"questions", "steps"}
    if not isinstance(fields, dict) or not names <= fields.keys() <= {*names, "skip_too_long"}:
        message = "The body: got other fields, expected questions, steps and possibly skip_too_long. Fix the fields."
        raise HTTPException(422, message)
    questions, steps, skip_too_long = fields["questions"], fields["steps"], fields.get("skip_too_long", False)
    _expect(questions, list, "questions", "a list of strings")
    _expect(steps, list, "steps", "a list of lists of strings")
    _expect(skip_too_long, bool, "skip_too_long", "true or false")
    if len(questions) != len(steps):
        message = f"got {len(questions)} questions for {len(steps)} solutions, expected one question per solution."
        raise HTTPException(422, message)
    if len(steps) > max_solutions:
        message = f"got {len(steps)} solutions, expected at most {max_solutions}. Send several requests."
        raise HTTPException(422, message)
    for row, (question, solution) in enumerate(zip(questions, steps, strict=True)):
        _expect(question, str, f"questions[{row}]", "a string")
        _expect(solution, list, f"steps[{row}]", "a list of strings")
        if len(solution) > max_steps:
            message = f"steps[{row}]: got {len(solution)} steps, expected at most {max_steps}. Leave the solution out."
            raise HTTPException(422, message)
        for step_index, step in enumerate(solution):
            _expect(step, str, f"steps[{row}][{step_index}]", "a string")
        try:
            "".join([question, *solution]).encode()
        except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which tokenizers do not accept
            message = f"questions[{row}] or steps[{row}]: got a lone surrogate, expected Unicode text. Remove it."
            raise HTTPException(422, message) from None
    return questions, steps, skip_too_long


def _expect(value: Any, kind: type, name: str, expected: str) -> None:
    if not isinstance(value, kind):
        raise HTTPException(422, f"{name}: got {type(value).__name__}, expected {expected}.")


def _check_scores(
    scores: list[list[float]], steps: list[list[str]], skip_too_long: bool, context_length: int | None
) -> None:
    for row, (values, solution) in enumerate(zip(scores, steps, strict=True)):
        if solution and not values and not skip_too_long:
            message = (
                f"steps[{row}]: got a solution with more tokens than the model's context of {context_length}. Shorten "
                "the solution, leave it out, or set skip_too_long."
            )
            raise HTTPException(422, message)
        for step_index, value in enumerate(values):
            if not math.isfinite(value):
                message = (
                    f"steps[{row}][{step_index}]: the reward model returned {value}, expected a finite score. Check "
                    "its weights and dtype."
                )
                raise HTTPException(500, message)


class _Job(NamedTuple):
    questions: list[str]
    steps: list[list[str]]
    has_left: Callable[[], Awaitable[bool]]
    outcome: asyncio.Future


class _Batches:
    """Combines the waiting requests into calls of the scorer. One thread runs the calls one after another."""

    def __init__(self, scorer: StepScorer, max_batch: int):
        self._scorer, self._max_batch = scorer, max_batch
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._work: asyncio.Task | None = None

    async def score(
        self, questions: list[str], steps: list[list[str]], has_left: Callable[[], Awaitable[bool]]
    ) -> list[list[float]]:
        """Scores one request. Raises `ClientDisconnect` if the client has disconnected before scoring starts."""
        job = _Job(questions, steps, has_left, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._score_all())
        return await job.outcome

    async def close(self) -> None:
        """Waits until all requests are answered."""
        if self._work is not None:
            await self._work
        self._thread.shutdown()

    async def _score_all(self) -> None:
        while self._jobs:
            jobs = await self._next()
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                if job.outcome.done():  # the request was cancelled
                    continue
                if isinstance(outcome, Exception):
                    job.outcome.set_exception(outcome)
                else:
                    job.outcome.set_result(outcome)

    async def _next(self) -> list[_Job]:
        jobs: list[_Job] = []
        size = 0
        while self._jobs and (not jobs or size + len(self._jobs[0].steps) <= self._max_batch):
            job = self._jobs.popleft()
            # A client that timed out sends its request again. Scoring the old request would delay the other clients
            # until they time out, too.
            if await job.has_left():
                if not job.outcome.done():
                    job.outcome.set_exception(ClientDisconnect())
                continue
            jobs.append(job)
            size += len(job.steps)
        return jobs

    def _score(self, jobs: list[_Job]) -> list[list[list[float]] | Exception]:
        if not jobs:
            return []
        questions = [question for job in jobs for question in job.questions]
        steps = [solution for job in jobs for solution in job.steps]
        try:
            scores = iter(self._scorer.score(questions, steps, skip_too_long=True))
            return [[next(scores) for _ in job.steps] for job in jobs]
        except Exception as error:
            if len(jobs) > 1:  # only one of the requests may be the cause
                return [self._score([job])[0] for job in jobs]
            # Logs the traceback without the error's message, which may quote text from the request.
            name, where = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            logger.error("Scoring a request of %d solutions failed with %s at\n%s", len(steps), name, where)
            return [HTTPException(500, f"The reward model failed with {name}. See the traceback in the server's log.")]


class RequestInTime(H11Protocol):
    """
    A uvicorn protocol that closes a connection if no request begins on it within `IDLE_SECONDS`, because the client
    sends nothing, sends its headers too slowly, or never ends the body of a refused request.

    It is based on h11, because httptools accepts headers of any size.
    """

    def connection_made(self, transport) -> None:
        """Starts the timeout of the first request."""
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        """Starts the timeout of the next request."""
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        self.loop.call_later(IDLE_SECONDS, self._close_if_none_began, self.cycle)

    def _close_if_none_began(self, last) -> None:
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.abort()  # close() would wait until the client has read the last answer


# Arguments of `uvicorn.run` for a scoring app.
UVICORN: dict[str, Any] = {"http": RequestInTime, "ws": "none", "access_log": False}
