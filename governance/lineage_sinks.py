"""Where lineage events go: a file, an OpenLineage HTTP endpoint, or both.

No sink raises and none keeps its caller waiting: an event that cannot be delivered is dropped, and
the first loss of each sink is logged.
"""

import atexit
import fcntl
import json
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from leitstand.errors import ConfigurationError
from leitstand.ports import LineageSink

__all__ = ["CompositeSink", "FileSink", "HttpSink"]


class _OnceLogged:
    """Counts lost events and logs the first of them."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.lost = 0

    def report(self, problem: object) -> None:
        self.lost += 1
        if self.lost == 1:
            structlog.get_logger().warning(
                "lineage events are lost",
                **{"event.action": "leitstand.lineage.lost", "leitstand": {"sink": self.target, "error": str(problem)}},
            )


class FileSink:
    """Appends each event as one JSON line. Safe with concurrent threads and processes.

    A line that a killed process left unfinished is closed, so that it spoils itself only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._losses = _OnceLogged(str(path))

    def emit(self, event: Mapping[str, Any]) -> None:
        """Appends the event under an exclusive lock."""
        try:
            line = json.dumps(event, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                _append(handle, line)
            finally:
                os.close(handle)
        except (OSError, TypeError, ValueError) as error:
            self._losses.report(error)

    def close(self) -> None:
        """Nothing is held open between events."""


def _append(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line
    while line:
        line = line[os.write(handle, line) :]


class HttpSink:
    """Posts events to an OpenLineage endpoint (Marquez, DataHub and others) from a thread of its own.

    Args:
        url: Base URL; events go to ``api/v1/lineage`` below it.
        api_key: Sent as a bearer token.
        timeout_s: For one attempt to connect or to read the answer. One retry follows.
        capacity: Events that may wait; more are dropped.
        flush_s: Time that waiting events get when the process ends or `close` is called.
    """

    def __init__(
        self, url: str, *, api_key: str = "", timeout_s: float = 3.0, capacity: int = 1000, flush_s: float = 5.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigurationError(
                f"lineage.url '{url}' is not an HTTP URL", hint="set LEITSTAND_LINEAGE__URL like http://host:5000"
            )
        self.url = url.rstrip("/") + "/"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._flush_s = flush_s
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(capacity)
        self._losses = _OnceLogged(url)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None

    def emit(self, event: Mapping[str, Any]) -> None:
        """Queues the event and returns at once."""
        with self._lock:
            if self._stop_at is not None:
                self._losses.report("the sink is closed")
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._deliver, name="lineage", daemon=True)
                self._thread.start()
                atexit.register(self.close)
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._losses.report(f"{self._waiting.maxsize} events wait already")

    def close(self) -> None:
        """Gives waiting events `flush_s` seconds, then lets them go. Closing twice is no error."""
        with self._lock:
            thread, first = self._thread, self._stop_at is None
            if first:
                self._stop_at = time.monotonic() + self._flush_s
        if thread is None or not first:
            return
        atexit.unregister(self.close)
        try:
            self._waiting.put(None, timeout=self._flush_s)
        except queue.Full:
            self._losses.report("closed while events wait")
        thread.join(max(0.0, (self._stop_at or 0.0) - time.monotonic()))
        left = self._waiting.qsize()
        if thread.is_alive() and left:
            self._losses.report(f"closed while {left} events wait")

    def _deliver(self) -> None:
        transport = self._transport()
        try:
            while (event := self._waiting.get()) is not None:
                if self._stop_at is not None and time.monotonic() > self._stop_at:
                    return
                try:
                    transport.emit(dict(event))
                except Exception as error:
                    self._losses.report(error)
        finally:
            transport.close()

    def _transport(self) -> Any:
        from openlineage.client.transport.http import HttpConfig, HttpTransport  # noqa: PLC0415

        settings: dict[str, Any] = {"url": self.url, "timeout": self._timeout_s}
        settings["retry"] = {"total": 1, "connect": 1, "read": 1, "backoff_factor": 0.1}
        if self._api_key:
            settings["auth"] = {"type": "api_key", "apiKey": self._api_key}
        return HttpTransport(HttpConfig.from_dict(settings))


class CompositeSink:
    """Sends each event to every sink, in order."""

    def __init__(self, sinks: Sequence[LineageSink]) -> None:
        self.sinks = tuple(sinks)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Hands the event on; one sink's loss does not keep it from the others."""
        for sink in self.sinks:
            sink.emit(event)

    def close(self) -> None:
        """Closes every sink that can be closed."""
        for sink in self.sinks:
            close = getattr(sink, "close", None)
            if close:
                close()
