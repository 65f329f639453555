"""How a scoring server reads its connections: headers of bounded size and in time, whoever sends them. It is uvicorn's
part of what `scoring_server.py` says of bodies; a deadline for those, and the token, are there.
"""

from typing import Any


try:
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("A scoring server needs uvicorn: pip install 'erprm_trl[serve]'.") from error

IDLE_SECONDS = 30.0


class RequestInTime(H11Protocol):
    """
    A connection that is closed when no request begins on it for `IDLE_SECONDS`: nothing is sent, headers trickle in,
    or the body of a request that was refused goes on for ever.

    h11, not httptools: that one reads headers of any size.
    """

    def connection_made(self, transport) -> None:
        """The first request has to begin in time."""
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        """So has the next one."""
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        self.loop.call_later(IDLE_SECONDS, self._close_if_none_began, self.cycle)

    def _close_if_none_began(self, last) -> None:
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.abort()  # close() would wait until the last answer is read


UVICORN: dict[str, Any] = {"http": RequestInTime, "ws": "none", "access_log": False}
"""Arguments of `uvicorn.run` for a scoring app."""
