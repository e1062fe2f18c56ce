"""Clients that take too long to send a request, or to take an answer, are sent away.

uvicorn's only limit, `timeout_keep_alive`, starts after an answer and ends with the next byte: a connection that sends
nothing, half of a header, or a byte of the body now and then, is held for ever. Here a connection notes since when
it is waited for, which costs nothing per request, and once a second `SlowClients.sweep` closes those over
the bound: with 408 when the request was begun. Header lines without an end are refused with 431 as they come.
How long a handler works on a complete request is bounded by its deadline, not here.
"""

from functools import partial
from time import monotonic
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway_metrics import SLOW_CLIENTS

__all__ = ["MAX_HEAD_BYTES", "SlowClients"]

MAX_HEAD_BYTES = 128 * 1024
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Connection(HttpToolsProtocol):
    """One connection that knows since when it waits for its client."""

    def __init__(self, *args: Any, registry: "set[_Connection]", **more: Any) -> None:
        super().__init__(*args, **more)
        self._registry = registry
        self._sending_since: float | None = None
        self._stalled_since: float | None = None
        self._begun = False
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._sending_since = monotonic()
        self._registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._sending_since is None and (self.cycle is None or self.cycle.response_complete):
            self._sending_since = monotonic()
        if self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end(TOO_LONG, "long head")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun, self._head_bytes = True, 0
        self._sending_since = monotonic()

    def on_headers_complete(self) -> None:
        self._begun = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._sending_since = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._stalled_since = monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def end_if_late(self, before: float) -> None:
        """Closes the connection when it has waited since `before` or longer."""
        if self._stalled_since is not None and self._stalled_since <= before:
            SLOW_CLIENTS.labels("answer").inc()
            self.transport.abort()
        elif self._sending_since is not None and self._sending_since <= before and not self._busy():
            silent = not self._begun and (self.cycle is None or self.cycle.response_complete)
            self._end(b"" if silent else TOO_SLOW, "silence" if silent else "request")

    def _busy(self) -> bool:
        """Whether an earlier request on this connection is being answered: then it is not the client who is late."""
        cycle = self.cycle
        if self.pipeline:
            return True
        return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)

    def _end(self, answer: bytes, what: str) -> None:
        SLOW_CLIENTS.labels(what).inc()
        self._sending_since = None
        if not self.transport.is_closing():
            if answer:
                self.transport.write(answer)
            self.transport.close()


class SlowClients:
    """The connections of one server.

    Args:
        bound_s: Time for a request to arrive, or for a client to take what waits for it.
    """

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._connections: set[_Connection] = set()

    @property
    def protocol(self) -> Any:
        """For ``uvicorn.Config(http=...)``."""
        return partial(_Connection, registry=self._connections)

    async def sweep(self) -> None:
        """For ``uvicorn.Config(callback_notify=...)``, which calls it about once a second."""
        before = monotonic() - self._bound_s
        for connection in list(self._connections):
            connection.end_if_late(before)
