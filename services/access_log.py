"""The access log: a line per request, as many as the settings ask for, written by a thread of its own.

A line says what was asked for and how it went, in fields of the Elastic Common Schema. Paths, texts, credentials and
subjects never come into it; a tenant only as a pseudonym under the installation's key. When lines come faster than
they can be written, some are dropped and counted.
"""

import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import structlog

from services.gateway_metrics import ACCESS_LINES_DROPPED
from services.observing import Seen
from services.recording import pseudonym

__all__ = ["AccessLog"]

PAUSE_S = 0.1
WAITING = 10_000
ERRORS, SERVER_ERRORS = 400, 500

logger = structlog.get_logger()


class AccessLog:
    """Writes to structlog. A `services.observing.Watcher`.

    Args:
        lines: ``errors`` for status 400 and above only, or ``all``.
        ratio: Share of the successful requests that ``all`` logs.
        tenant_key: Key of the tenants' pseudonyms; without one lines have none.
    """

    def __init__(self, lines: Literal["errors", "all"], *, ratio: float = 1.0, tenant_key: bytes = b"") -> None:
        self._ratio = ratio if lines == "all" else 0.0
        self._due = 0.0
        self._key = tenant_key
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def began(self, seen: Seen) -> None:
        """Nothing to do yet."""

    def answering(self, seen: Seen) -> None:
        """Nothing to do yet."""

    def ended(self, seen: Seen) -> None:
        """Keeps what the line will say, and nothing else of the request, when it is one that leaves a line."""
        if seen.status < ERRORS and not self._is_due():
            return
        if len(self._waiting) >= WAITING:
            ACCESS_LINES_DROPPED.inc()
            return
        self._waiting.append((f"{seen.operation} {seen.status}", _line(seen, datetime.now(UTC), self._key)))

    def close(self) -> None:
        """Writes what waits."""
        self._ending.set()
        self._thread.join()

    def _is_due(self) -> bool:
        """Evenly spread: every third request at a ratio of a third."""
        self._due += self._ratio
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def _write_all(self) -> None:
        ended = False
        while not ended:
            ended = self._ending.wait(PAUSE_S)
            while self._waiting:
                message, line = self._waiting.popleft()
                write = logger.warning if line["http.response.status_code"] >= SERVER_ERRORS else logger.info
                write(message, **line)


def _line(seen: Seen, at: datetime, key: bytes) -> dict[str, Any]:
    exchange, headers = seen.exchange, dict(seen.headers or ())
    line: dict[str, Any] = {
        "event.kind": "event", "event.category": ["web"], "event.type": ["access"], "event.action": seen.operation,
        "event.outcome": "success" if seen.status < ERRORS else "failure",
        "event.start": (at - timedelta(seconds=seen.seconds)).isoformat(timespec="milliseconds"),
        "event.duration": int(seen.seconds * 1e9), "http.response.status_code": seen.status,
        "http.request.id": headers.get(b"x-request-id", b"").decode("latin-1"), "trace.id": seen.trace_id,
    }  # fmt: skip
    about: dict[str, Any] = {"use_case": seen.use_case}
    if exchange is not None:
        line["error.type"] = type(exchange.error).__name__ if exchange.error else ""
        line["organization.id"] = pseudonym(f"tenant:{exchange.caller.tenant}", key) if key else ""
        about |= {"version": exchange.version, "route": exchange.route}
        about["upstream_ms"] = round(exchange.upstream_s * 1000, 3)
    about = {name: value for name, value in about.items() if value not in ("", 0)}
    return {name: value for name, value in line.items() if value != ""} | ({"leitstand": about} if about else {})
