"""Scores steps with a reward model on a scoring server. No model is loaded in this process."""

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple

from ...io.config_values import is_url
from ...io.http_client import UNREADABLE, EndpointClient, EndpointError, Service
from ..prm_format import PRMFormat
from .backend import SolutionTooLong


SCORING = Service(
    example="http://localhost:8100",
    asked="scores",
    retried=frozenset({408, 429, 502, 503, 504}),
    remedies={
        401: "set ${api_key_env} to the server's token",
        403: "set ${api_key_env} to a token that has access to this server",
        404: "check the address: use the one that erprm serve prints, without a path after it",
    },
    other_remedy="check the server's log, and check that it runs the same version of erprm_trl",
    when_down="Check the server, then start again.",
)


class RemoteBackend:
    """
    A [`ScoringBackend`] whose model is on a server. `StepScorer.from_pretrained("http://host:8100")` uses this backend
    with its default options.

    A call is divided into requests within the server's limits, and up to `max_concurrency` requests run at a time.
    Dropped connections, timeouts and the statuses 408, 429, 502, 503 and 504 are retried after growing, jittered
    waits, which are at least as long as `Retry-After`. Any other failure ends the call. Proxies from the environment
    are used, except for a server on this machine.

    Scores are the same as with the model in this process, except for their last bits: these can depend on which
    solutions are scored in the same batch.

    Args:
        url (`str`):
            Address of the server. A `user:password@` in it is sent as basic authentication and never shown.
        max_concurrency (`int`, *optional*, defaults to `4`):
            Maximum number of concurrent requests per process.
        request_timeout, max_attempts, max_retry_seconds, retry_wait (*optional*):
            See [`~erprm_trl.rollouts.EndpointSampler`].
        token_env (`str`, *optional*, defaults to `"ERPRM_SCORER_TOKEN"`):
            Environment variable with the server's bearer token. If it is not set, no token is sent.

    Raises:
        [`~erprm_trl.rollouts.EndpointError`]: if the request for the server's format fails.

    Example:

    ```python
    >>> scorer = StepScorer.from_backend(RemoteBackend("http://localhost:8100", max_concurrency=16))
    ```
    """

    weights = None

    def __init__(
        self,
        url: str,
        *,
        max_concurrency: int = 4,
        request_timeout: float = 600.0,
        max_attempts: int = 12,
        max_retry_seconds: float = 900.0,
        retry_wait: float = 1.0,
        token_env: str = "ERPRM_SCORER_TOKEN",
    ):
        self.client = EndpointClient(
            SCORING, url, max_concurrency, request_timeout, max_attempts, max_retry_seconds, retry_wait, token_env
        )
        self._served = self.client.get("/format", self._read_format)
        self.prm_format = self._served.prm_format

    @property
    def model_name(self) -> str:
        """The model's name on the server. It does not contain the server's address, which may change."""
        return self._served.model

    @property
    def context_length(self) -> int | None:
        """Maximum length of a solution in tokens, including the question, or `None` without a limit."""
        return self._served.max_length

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores every step; see [`ScoringBackend.score`]. A solution that exceeds one of the server's limits is too
        long, too.

        Raises:
            [`SolutionTooLong`]: if a solution is too long and `skip_too_long` is `False`.
            [`~erprm_trl.rollouts.EndpointError`]: if a request fails.
        """
        scores: list[list[float]] = [[] for _ in steps]
        requests = list(self._requests(questions, steps))
        # The server always skips solutions that are too long, because it knows only their index in the request. The
        # error with the index in this call is raised below.
        bodies = [
            {"questions": [questions[i] for i in rows], "steps": [list(steps[i]) for i in rows], "skip_too_long": True}
            for rows in requests
        ]
        for rows, answer in zip(requests, self.client.post_all("/score", bodies, self._read_scores), strict=True):
            if len(answer) != len(rows):
                raise self._unreadable("/score")
            for index, values in zip(rows, answer, strict=True):
                if values and len(values) != len(steps[index]):
                    raise self._unreadable("/score")
                scores[index] = values
        if not skip_too_long:
            self._check_length(steps, scores)
        return scores

    def _requests(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> Iterator[list[int]]:
        # Rows of each request, within the server's limits. Solutions without steps, or beyond a limit, are skipped.
        served, rows, size = self._served, [], 0
        most = served.max_body_bytes - len('{"questions": [], "steps": [], "skip_too_long": true}')
        for index, (question, solution) in enumerate(zip(questions, steps, strict=True)):
            # The client sends JSON without spaces, so this size is slightly above the size that the server counts.
            bytes_here = len(json.dumps([question, list(solution)], ensure_ascii=False).encode())
            if not solution or len(solution) > served.max_steps or bytes_here > most:
                continue
            if rows and (len(rows) == served.max_solutions or size + bytes_here > most):
                yield rows
                rows, size = [], 0
            rows.append(index)
            size += bytes_here
        if rows:
            yield rows

    def _check_length(self, steps: Sequence[Sequence[str]], scores: list[list[float]]) -> None:
        for index, (solution, values) in enumerate(zip(steps, scores, strict=True)):
            if solution and not values:
                served = self._served
                raise SolutionTooLong(
                    index,
                    f"is too long for {self.client.base_url}, expected at most {served.max_length} tokens (the "
                    f"model's context), {served.max_steps} steps and {served.max_body_bytes} bytes. Shorten the "
                    "solution, or leave it out.",
                )

    def _read_format(self, text: str) -> "_Served":
        # A malformed answer is not retried: it does not come from a scoring server of this version.
        try:
            fields = json.loads(text)
            prm_format = PRMFormat.from_json(json.dumps(fields.pop("prm_format")))
            served = _Served(prm_format, *(fields[name] for name in _Served._fields[1:]))
            limits = [served.max_solutions, served.max_steps, served.max_body_bytes]
            limits += [] if served.max_length is None else [served.max_length]
            if isinstance(served.model, str) and all(isinstance(limit, int) and limit > 0 for limit in limits):
                return served
        except UNREADABLE:
            pass
        raise self._unreadable("/format") from None

    def _read_scores(self, text: str) -> list[list[float]]:
        try:
            scores = [[float(value) for value in values] for values in json.loads(text)["scores"]]
            if all(0 <= value <= 1 for values in scores for value in values):
                return scores
        except UNREADABLE:
            pass
        raise self._unreadable("/score")

    def _unreadable(self, path: str) -> EndpointError:
        return EndpointError(
            f"{self.client.base_url}{path}: got an answer in another form, expected the answer of a scoring server "
            "with this version of erprm_trl. Check the address and the server's version."
        )


class _Served(NamedTuple):
    prm_format: PRMFormat
    model: str
    max_length: int | None
    max_solutions: int
    max_steps: int
    max_body_bytes: int


def refuse_loading(path_or_url: str | PathLike, **arguments: Any) -> None:
    """
    Refuses arguments that only apply to a reward model that is loaded in this process.

    Args:
        path_or_url (`str` or `PathLike`):
            Address of a scoring server, or a scorer file.
        arguments:
            The arguments by name.

    Raises:
        `ValueError`: if one of the arguments is set.
    """
    refused = [name for name, value in arguments.items() if value]
    if refused and is_url(path_or_url):
        raise ValueError(
            f"{', '.join(refused)}: got a value together with the address of a scoring server, expected the address "
            "alone. Set it where the server is started, because the server loads the model."
        )
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: got a value together with the scorer file {path_or_url}, expected the file alone. "
            "Leave the argument out. The file has the settings of the scorer and of its sampler."
        )
