"""The outermost layer of the gateway: counts every request, and, where switched on, traces it and logs a line.

It looks at the request line, at the response's status and headers as they pass, and at the `Exchange` that the
layers below leave in the scope under `EXCHANGE`. It never looks at a body. What a client may choose freely, a path
or the name of a use case, becomes no label: a path counts as one of a few operations, and an unknown use case as "".
"""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any, Protocol

from prometheus_client import Counter, Histogram

from services.asgi import EXCHANGE
from services.exchange import Exchange
from services.gateway_metrics import COST, HTTP_LATENCY, HTTP_REQUESTS, TOKENS
from services.trace_context import TRACE_ID, TRACEPARENT, traceparent_of

__all__ = ["Observed", "Seen", "Watcher", "operation_of"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OF_USE_CASE = frozenset({"predict", "feedback", "jobs"})
SINGLE = {"livez": "health", "readyz": "health", "metrics": "metrics", "openapi.json": "docs", "docs": "docs"}
CLIENT_GONE = 499  # what proxies log when nobody waited for the answer; never sent
MICROS = 1_000_000


@dataclass(slots=True)
class Seen:
    """One request, as it looked from outside.

    Attributes:
        scope: ASGI's scope; credentials are among its headers.
        operation: One of a few names.
        use_case: A known one, or empty.
        started: `perf_counter` time of arrival.
        status: Of the answer; 499 when there was none.
        headers: Of the answer; watchers may append while it begins.
        seconds: Until the answer's last byte was handed over.
        trace_id: 32 hexadecimal digits, or empty.
        exchange: What the pipeline knew, if it came that far.
        span: What tracing keeps until the end.
    """

    scope: Scope
    operation: str
    use_case: str
    started: float
    status: int = CLIENT_GONE
    headers: list[tuple[bytes, bytes]] | None = None
    seconds: float = 0.0
    trace_id: str = ""
    exchange: Exchange | None = None
    span: Any = None


class Watcher(Protocol):
    """Somebody who wants to know of each request: `began`, `answering` before the status is sent, `ended`."""

    def began(self, seen: Seen) -> None:
        """Called first, in the request's own context."""
        ...

    def answering(self, seen: Seen) -> None:
        """Called with the status and headers that are about to be sent."""
        ...

    def ended(self, seen: Seen) -> None:
        """Called when everything is known."""
        ...

    def close(self) -> None:
        """Hands over what is still held; may take a while."""
        ...


class Observed:
    """Passes requests on to `app` and watches.

    Args:
        app: The gateway.
        known: Whether a use case has routes.
        watchers: Told in this order.
    """

    def __init__(self, app: App, known: Callable[[str], bool], *watchers: Watcher) -> None:
        self._app = app
        self._known = known
        self._watchers = watchers
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        operation, name = operation_of(scope["path"])
        seen = Seen(scope, operation, name if name and self._known(name) else "", perf_counter())
        traceparent = traceparent_of(scope["headers"])
        seen.trace_id = traceparent[3:35]
        token = TRACE_ID.set(seen.trace_id)
        TRACEPARENT.set(traceparent)
        watchers = self._watchers
        for watcher in watchers:
            watcher.began(seen)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen.status, seen.headers = message["status"], message["headers"]
                for watcher in watchers:
                    watcher.answering(seen)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._count(seen)
            for watcher in watchers:
                watcher.ended(seen)
            TRACE_ID.reset(token)

    def _count(self, seen: Seen) -> None:
        seen.seconds = perf_counter() - seen.started
        exchange = seen.exchange = seen.scope.get(EXCHANGE)
        if exchange is not None and not seen.use_case and self._known(exchange.use_case):
            seen.use_case = exchange.use_case
        key = (seen.operation, seen.use_case, seen.status)
        counters = self._counters.get(key)
        if counters is None:
            requests = HTTP_REQUESTS.labels(seen.operation, seen.use_case, str(seen.status))
            counters = self._counters[key] = requests, HTTP_LATENCY.labels(seen.operation, seen.use_case)
        counters[0].inc()
        counters[1].observe(seen.seconds)
        if exchange is not None and seen.use_case and exchange.reply is not None:
            used = exchange.usage
            for kind, amount in (("in", used.tokens_in), ("out", used.tokens_out)):
                if amount:
                    TOKENS.labels(seen.use_case, kind).inc(amount)
            if used.cost_micros:
                COST.labels(seen.use_case).inc(used.cost_micros / MICROS)


@lru_cache(1024)
def operation_of(path: str) -> tuple[str, str]:
    """What a path asks for, as one of a few names, and the use case that it names, known or not."""
    parts = path.split("/", 5)
    match parts[1:]:
        case ["v1", ("chat" | "models") as name, *_]:
            return name, ""
        case ["v1", name, operation, *_] if operation in OF_USE_CASE:
            return operation, name
        case ["v2", "models", name, *rest]:
            infer = bool(rest) and rest[-1].endswith("infer")
            return "infer" if infer else "metadata", name
        case ["v2", *_]:
            return "metadata", ""
        case [first, *_]:
            return SINGLE.get(first, "other"), ""
    return "other", ""
