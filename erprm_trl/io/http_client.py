"""Sends many requests to one server, with a bounded number at a time and with retries. If a request fails for good,
the others are cancelled.

The client does not depend on the kind of request: samplers and remote scorers build the requests and parse the
answers.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import ip_address
from time import monotonic, time
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .redaction import without_login


logger = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
LONGEST_WAIT = 60.0
SECONDS_BETWEEN_WARNINGS = 10.0  # many requests may fail at the same time
# Errors that parsing an answer may raise. RecursionError: JSON that is nested too deeply. OverflowError: an integer
# that is too large for a float.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


class Service(NamedTuple):
    """
    A kind of server.

    Args:
        example (`str`):
            Example of its address, for errors.
        asked (`str`):
            Contents of its answers, for errors, e.g. `"scores"`.
        retried (`frozenset[int]`):
            HTTP statuses after which the request is sent again.
        remedies (`dict[int, str]`):
            Advice for the user about other statuses. May contain `{api_key_env}`.
        other_remedy (`str`):
            Advice for the user about a status that is not in `remedies`.
        when_down (`str`):
            Advice for the user if all attempts failed, as full sentences.
    """

    example: str
    asked: str
    retried: frozenset[int]
    remedies: dict[int, str]
    other_remedy: str
    when_down: str


class EndpointError(RuntimeError):
    """
    A request failed: the server refused it, or did not answer it after all attempts.

    Args:
        message (`str`):
            Message of the error.
        status (`int`, *optional*):
            HTTP status with which the server refused the request.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class _Retryable(Exception):
    """A failure after which the request is sent again, after `retry_after` seconds if the server asked for a delay."""

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class EndpointClient:
    """
    A client of one server. Its connections are open during a call only. See [`EndpointSampler`] for the arguments.
    """

    def __init__(
        self,
        service: Service,
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
                f"max_concurrency and max_attempts: got {max_concurrency} and {max_attempts}, expected at least 1. "
                "Pass 1 or more for both."
            )
        self.service = service
        self.base_url, self._login = _without_login(base_url, service.example)
        self.max_concurrency, self.request_timeout = max_concurrency, request_timeout
        self.max_attempts, self.max_retry_seconds, self.retry_wait = max_attempts, max_retry_seconds, retry_wait
        self.api_key_env = api_key_env
        self._last_warning = -SECONDS_BETWEEN_WARNINGS

    def get(self, path: str, parse: Callable[[str], Any]) -> Any:
        """Gets the text at a path, and returns the result of `parse` on it. See [`EndpointClient.post_all`]."""
        return self._ask("GET", path, [None], parse)[0]

    def post_all(self, path: str, bodies: list[dict[str, Any]], parse: Callable[[str], Any]) -> list:
        """
        Posts every body, and parses the answers.

        Args:
            path (`str`):
                Path below the base URL.
            bodies (`list[dict[str, Any]]`):
                Bodies of the requests.
            parse (`Callable[[str], Any]`):
                Parses the text of an answer. If it raises one of the errors in `UNREADABLE`, the body is posted again.

        Returns:
            `list`: the parsed answers, in the order of the bodies.

        Raises:
            [`EndpointError`]: if a request fails for good. The other requests are cancelled.
        """
        return self._ask("POST", path, bodies, parse)

    def _ask(self, method: str, path: str, bodies: list, parse: Callable[[str], Any]) -> list:
        from anyio.from_thread import start_blocking_portal

        # The event loop runs in a new thread, because this thread may already run an event loop (in a notebook).
        # Leaving the block ends all requests and closes the connections, also after an interrupt.
        with start_blocking_portal() as portal:
            return portal.call(self._ask_all, method, self.base_url + path, bodies, parse)

    async def _ask_all(self, method: str, url: str, bodies: list, parse: Callable[[str], Any]) -> list:
        import httpx

        answers: list[Any] = [None] * len(bodies)
        todo = iter(enumerate(bodies))
        key = self._api_key()
        options = {
            "auth": self._login,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(None, connect=CONNECT_SECONDS),
            "verify": _tls_context(),
            "proxy": proxy_of(self.base_url),
            "trust_env": False,  # proxy_of has read the environment
        }

        async def work() -> None:
            # One client per worker, because the pool of a shared client checks all its connections at every request.
            async with httpx.AsyncClient(**options) as client:
                for index, body in todo:
                    request = client.build_request(method, url, json=body)
                    answers[index] = await self._answer(client, request, parse, key)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.max_concurrency, len(bodies))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return answers

    async def _answer(self, client, request, parse: Callable[[str], Any], key: str) -> Any:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

        # One object per request, because it keeps its state between attempts.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Retryable),
            wait=self._wait,
            stop=stop_after_attempt(self.max_attempts) | stop_before_delay(self.max_retry_seconds),
            before_sleep=self._log_retry,
            retry_error_callback=self._give_up,
        )
        return await retrying(self._attempt, client, request, parse, key)

    async def _attempt(self, client, request, parse: Callable[[str], Any], key: str) -> Any:
        import httpx

        try:
            async with asyncio.timeout(self.request_timeout):
                response = await client.send(request)
        except TimeoutError as error:
            raise _Retryable(f"no answer within {self.request_timeout:g} s") from error
        except httpx.ProxyError as error:
            reason = f"the proxy did not connect to the server ({error})"
            if str(error).startswith("4"):  # a refused host or login would be refused again
                raise EndpointError(f"{request.url}: {reason}.{self._about_proxy()}") from error
            raise _Retryable(reason) from error
        except httpx.RequestError as error:
            raise _Retryable(f"{type(error).__name__} {error}".strip()) from error
        status, message = response.status_code, _shortened(response.text, key)
        if status in self.service.retried:
            raise _Retryable(f"status {status}: {message}", _retry_after(response.headers.get("retry-after")))
        if not response.is_success:
            remedy = self.service.remedies.get(status, self.service.other_remedy).format(api_key_env=self.api_key_env)
            raise EndpointError(
                f"{request.url} refused a request with status {status}: {message!r}. Remedy: {remedy}."
                f"{self._about_proxy()}",
                status,
            )
        try:
            return parse(response.text)
        except UNREADABLE as error:
            asked = self.service.asked
            raise _Retryable(f"an answer without {asked} ({type(error).__name__}): {message}") from error

    def _api_key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"${self.api_key_env}: got characters that an HTTP header must not contain, expected printable "
                "ASCII characters. Set it again."
            )
        return key

    def _wait(self, state) -> float:
        backoff = min(LONGEST_WAIT, self.retry_wait * 2 ** (state.attempt_number - 1))
        # The global random state is not used, because it belongs to the caller.
        jitter = random.SystemRandom().uniform(0.5, 1.0)
        return state.outcome.exception().retry_after + backoff * jitter

    def _log_retry(self, state) -> None:
        visible = monotonic() - self._last_warning >= SECONDS_BETWEEN_WARNINGS
        if visible:
            self._last_warning = monotonic()
        logger.log(
            logging.WARNING if visible else logging.INFO,
            "%s: attempt %d of %d failed (%s). The next attempt is in %.1f s.%s",
            state.args[1].url,
            state.attempt_number,
            self.max_attempts,
            state.outcome.exception(),
            state.upcoming_sleep,
            self._about_proxy(),
        )

    def _give_up(self, state) -> None:
        error = state.outcome.exception()
        raise EndpointError(
            f"{state.args[1].url} gave no {self.service.asked} in {state.attempt_number} attempts "
            f"({state.seconds_since_start:.0f} s). The last attempt: {error}. "
            f"{self.service.when_down}{self._about_proxy()}"
        ) from error

    def _about_proxy(self) -> str:
        proxy = proxy_of(self.base_url)
        if proxy is None:
            return ""
        return (
            f" Requests go through the proxy {without_login(proxy)}, which the environment sets. If the proxy refuses "
            f"them, add {urlsplit(self.base_url).hostname} to NO_PROXY."
        )


def proxy_of(url: str) -> str | None:
    """
    Finds the proxy for an address in `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.

    Args:
        url (`str`):
            Address of a server.

    Returns:
        `str` or `None`: the address of the proxy, or `None` for a direct connection. The result is always `None` for a
        server on this machine, because a proxy cannot reach it.
    """
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, i.e. `localhost`, or an address such as 127.0.0.1, ::1 or 0.0.0.0."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@cache
def _tls_context():
    # Cached per process, because creating the context takes longer than a request.
    import httpx

    return httpx.create_ssl_context()


def _without_login(base_url: str, example: str) -> tuple[str, tuple[str, str] | None]:
    """The address without its credentials, and the credentials."""
    import httpx

    # The messages do not show the address, because it may contain a password.
    expected = f"expected an address such as {example!r}, without a query. Pass the address of the server"
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise ValueError(f"base_url: got an invalid URL, {expected}.") from None
    if url.scheme not in ("http", "https") or not url.host or url.query:
        raise ValueError(f"base_url: got scheme {url.scheme!r} and host {url.host!r}, {expected}.")
    login = (url.username, url.password) if url.userinfo else None
    return str(url.copy_with(userinfo=b"", path=url.path.rstrip("/"))).rstrip("/"), login


def _retry_after(value: str | None) -> float:
    """Seconds to wait according to the header `Retry-After`, a number or a date. 0 if it cannot be parsed."""
    try:
        return max(0.0, float(int(value)))
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _shortened(message: str, key: str) -> str:
    # Some servers repeat the refused key in their message.
    message = message.replace(key, "<key>") if key else message
    return " ".join(message.split())[:300]
