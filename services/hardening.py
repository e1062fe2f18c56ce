"""What every request and response of the gateway passes: limits on headers, headers that protect browsers, CORS.

CORS is closed unless origins are named.
A header that decides who asks, for whom, or how long the body is, and comes twice, is refused: the layers behind
might each believe another one.
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from services.asgi import respond
from services.problems import problem

__all__ = ["Hardened"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECURE = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
POLICY = b"content-security-policy"
HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")
ONCE = frozenset({b"authorization", b"x-api-key", b"x-subject", b"content-length", b"content-type", b"host"})
TOO_LARGE = 431
ALLOWED_HEADERS = b"authorization, content-type, x-api-key, x-subject, x-request-id, traceparent"
EXPOSED_HEADERS = b"x-request-id, x-leitstand-version, x-leitstand-route, retry-after"


class Hardened:
    """Passes requests that keep the limits on to `app`.

    Args:
        app: The gateway.
        max_headers: Header lines per request.
        max_header_bytes: Their names and values together.
        origins: Whose pages may call; none: CORS stays closed.
        tls: Whether callers come over HTTPS, which browsers should then insist on.
    """

    def __init__(
        self, app: App, *, max_headers: int = 64, max_header_bytes: int = 32_768, origins: Sequence[str] = (),
        tls: bool = False,
    ) -> None:  # fmt: skip
        self._app = app
        self._max_headers, self._max_bytes = max_headers, max_header_bytes
        self._origins = frozenset(origin.encode() for origin in origins)
        self._added = [*SECURE, HSTS] if tls else SECURE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        added = self._added
        if self._origins:
            added = [*added, *self._cors(headers)]

        async def protected(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                said = message["headers"] = list(message["headers"])
                own = any(name == POLICY for name, _ in said)
                said += [pair for pair in added if pair[0] != POLICY] if own else added
            await send(message)

        refusal = self._refusal(headers)
        if refusal is not None:
            await respond(protected, problem(*refusal))
        elif self._origins and scope["method"] == "OPTIONS" and len(added) > len(self._added) + 1:
            await respond(protected, (204, [], b""))
        else:
            await self._app(scope, receive, protected)

    def _refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        if len(headers) > self._max_headers:
            return TOO_LARGE, f"the request has {len(headers)} header lines, at most {self._max_headers} are accepted"
        size, seen = 0, set()
        for name, value in headers:
            size += len(name) + len(value)
            if name in ONCE:
                if name in seen:
                    return 400, f"the header {name.decode()} comes twice"
                seen.add(name)
        if size > self._max_bytes:
            return TOO_LARGE, f"the headers have {size} bytes, at most {self._max_bytes} are accepted"
        return None

    def _cors(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The permission for an origin that is named; for others only that the answer depends on it."""
        origin = next((value for name, value in headers if name == b"origin"), b"")
        vary = (b"vary", b"origin")
        if origin not in self._origins:
            return [vary]
        return [
            vary, (b"access-control-allow-origin", origin), (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", ALLOWED_HEADERS), (b"access-control-expose-headers", EXPOSED_HEADERS),
            (b"access-control-max-age", b"600"),
        ]  # fmt: skip
