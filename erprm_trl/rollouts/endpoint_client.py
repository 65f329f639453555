"""Posts many requests to one address and gets every answer: bounded in number, retried, cancelled together. What is
asked and what the answers mean is the sampler's."""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time
from typing import Any


logger = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
LONGEST_WAIT = 60.0
RETRIED = {408, 409, 425, 429}
REMEDIES = {
    401: "put the key into ${api_key_env}",
    403: "put a key that may use this model into ${api_key_env}",
    404: "check base_url, which ends with /v1 as a rule, and the name under which the model is served",
}
OTHER_REMEDY = (
    "if the prompt is too long for the server, drop the question, lower max_new_tokens or serve a longer context; if "
    "a field is refused, look at top_k and extra_body, and at send='text' for a server that takes no token ids"
)


class EndpointError(RuntimeError):
    """A completion that could not be had: refused by the server, or not answered after all attempts."""


class _Retryable(Exception):
    """A failure that another attempt may not meet; the server may say how long to wait."""

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class EndpointClient:
    """
    A client of one `/completions` endpoint; connections live as long as a call. See [`EndpointSampler`] for the
    arguments.
    """

    def __init__(
        self,
        base_url: str,
        max_concurrency: int,
        request_timeout: float,
        max_attempts: int,
        max_retry_seconds: float,
        retry_wait: float,
        api_key_env: str,
    ):
        if max_concurrency < 1 or max_attempts < 1:
            raise ValueError(
                f"max_concurrency and max_attempts: got {max_concurrency} and {max_attempts}, expected at least 1."
            )
        self.url, self._login = _completions_url(base_url)
        self.max_concurrency, self.request_timeout = max_concurrency, request_timeout
        self.max_attempts, self.max_retry_seconds, self.retry_wait = max_attempts, max_retry_seconds, retry_wait
        self.api_key_env = api_key_env

    def post_all(self, bodies: list[dict[str, Any]], parse: Callable[[Any], Any]) -> list:
        """
        What `parse` makes of the answer to each body, in order. A body whose answer `parse` rejects with `ValueError`,
        `KeyError`, `TypeError` or `AttributeError` is posted again.

        Raises:
            [`EndpointError`]: at the first body that cannot be had; the others are cancelled.
        """
        from anyio.from_thread import start_blocking_portal

        # The event loop has a thread of its own, for one may be running in this one (a notebook). Whatever ends this
        # block, an interrupt too, ends the requests and closes the connections.
        with start_blocking_portal() as portal:
            return portal.call(self._post_all, bodies, parse)

    async def _post_all(self, bodies: list[dict[str, Any]], parse: Callable[[Any], Any]) -> list:
        import httpx

        answers: list[Any] = [None] * len(bodies)
        todo = iter(enumerate(bodies))
        key = self._api_key()
        options = {
            "auth": self._login,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(None, connect=CONNECT_SECONDS),
            "verify": httpx.create_ssl_context(),  # loaded once: it takes longer than a request
        }

        async def work() -> None:
            # A client for each: one client's pool looks at all of its connections at every request.
            async with httpx.AsyncClient(**options) as client:
                for index, body in todo:
                    answers[index] = await self._post(client, body, parse, key)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.max_concurrency, len(bodies))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return answers

    async def _post(self, client, body: dict[str, Any], parse: Callable[[Any], Any], key: str) -> Any:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

        # One object a request: it keeps its state between attempts.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Retryable),
            wait=self._wait,
            stop=stop_after_attempt(self.max_attempts) | stop_before_delay(self.max_retry_seconds),
            before_sleep=self._log_retry,
            retry_error_callback=self._give_up,
        )
        return await retrying(self._attempt, client, body, parse, key)

    async def _attempt(self, client, body: dict[str, Any], parse: Callable[[Any], Any], key: str) -> Any:
        import httpx

        try:
            async with asyncio.timeout(self.request_timeout):
                response = await client.post(self.url, json=body)
        except TimeoutError as error:
            raise _Retryable(f"no answer within {self.request_timeout:g} s") from error
        except httpx.RequestError as error:
            raise _Retryable(f"{type(error).__name__} {error}".strip()) from error
        status, message = response.status_code, _shortened(response.text, key)
        if status in RETRIED or status >= 500:
            raise _Retryable(f"status {status}: {message}", _retry_after(response.headers.get("retry-after")))
        if not response.is_success:
            remedy = REMEDIES.get(status, OTHER_REMEDY).format(api_key_env=self.api_key_env)
            raise EndpointError(f"{self.url} refused a request with status {status}: {message!r}. Remedy: {remedy}.")
        try:
            return parse(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Retryable(f"an answer without a completion ({type(error).__name__}): {message}") from error

    def _api_key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"${self.api_key_env} holds characters that no HTTP header may have: set it anew.")
        return key

    def _wait(self, state) -> float:
        backoff = min(LONGEST_WAIT, self.retry_wait * 2 ** (state.attempt_number - 1))
        # Not from the global random state, which is the caller's.
        jitter = random.SystemRandom().uniform(0.5, 1.0)
        return state.outcome.exception().retry_after + backoff * jitter

    def _log_retry(self, state) -> None:
        logger.info(
            "%s: attempt %d failed (%s), the next in %.1f s.",
            self.url,
            state.attempt_number,
            state.outcome.exception(),
            state.upcoming_sleep,
        )

    def _give_up(self, state) -> None:
        error = state.outcome.exception()
        raise EndpointError(
            f"{self.url} gave no completion in {state.attempt_number} attempts ({state.seconds_since_start:.0f} s); "
            f"the last: {error}. Look at the server, then start again: a collection keeps its finished chunks."
        ) from error


def _completions_url(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """The address to post to, free of credentials, and the credentials."""
    import httpx

    # What was got is not shown: it may hold a password.
    expected = "base_url: expected something like 'http://localhost:8000/v1', without a query"
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise ValueError(f"{expected}, got something else.") from None
    if url.scheme not in ("http", "https") or not url.host or url.query:
        raise ValueError(f"{expected}, got scheme {url.scheme!r} and host {url.host!r}.")
    login = (url.username, url.password) if url.userinfo else None
    return str(url.copy_with(userinfo=b"", path=url.path.rstrip("/") + "/completions")), login


def _retry_after(value: str | None) -> float:
    """Seconds that the header `Retry-After` asks for, given as a number or a date; 0 for what cannot be read."""
    try:
        return max(0.0, float(int(value)))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return 0.0


def _shortened(message: str, key: str) -> str:
    # Some servers repeat the key that they refuse.
    message = message.replace(key, "<key>") if key else message
    return " ".join(message.split())[:300]
