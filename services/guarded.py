"""The same question for every route that is not one of the hot paths: who asks, and may they?

A route that nobody thought of is closed: whatever lies below ``/v1/USE_CASE/ACTION`` needs the scope for that
action, anything else a known caller. Only the probes are open, and ``/metrics`` as the settings say.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

from leitstand.errors import ScopeMissing
from leitstand.types import Caller
from services.asgi import respond
from services.authentication import Access, OpenAccess
from services.errors import not_found
from services.problems import problem_for

__all__ = ["CALLER", "METRICS_SCOPE", "Guarded"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLER = "caller"
"""Where `request.state` holds the `Caller`; absent when access is off."""
METRICS_SCOPE = "metrics:read"
PROBES = frozenset({"/livez", "/readyz"})
OF_MANY = frozenset({"chat", "models"})  # their body names the use case: the pipeline asks for its scope


class Guarded:
    """Passes requests of callers who may on to `app`."""

    def __init__(self, app: App, access: Access, metrics: Literal["open", "scope", "off"] = "scope") -> None:
        self._app, self._access, self._metrics = app, access, metrics
        self._open = isinstance(access, OpenAccess)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            await self.check(scope)
        except Exception as error:  # the boundary: whatever it is, the caller gets an answer, and not the route's
            await respond(send, problem_for(error))
            return
        await self._app(scope, receive, send)

    async def check(self, scope: Scope) -> None:
        """Returns when the request may go on; asked again about the same request, it remembers.

        Raises:
            AuthenticationFailed: Nobody we know asks.
            PolicyDenied: Somebody who may not.
            TransientBackendError: It cannot be checked now.
        """
        path = scope["path"]
        if CALLER in scope.get("state", {}):
            return
        if path.rstrip("/") == "/metrics":
            if self._metrics == "off":
                raise not_found("no such path: /metrics")
            if self._metrics == "open":
                return
        if self._open:
            return
        caller = await self._access.identify(dict(scope["headers"]))
        self._permit(caller, path)
        scope.setdefault("state", {})[CALLER] = caller

    def _permit(self, caller: Caller, path: str) -> None:
        match [part for part in path.split("/") if part]:
            case ["metrics", *_] if METRICS_SCOPE not in caller.scopes:
                raise ScopeMissing(
                    f"'{caller.subject}' may not read the metrics", scope=METRICS_SCOPE,
                    hint=f"a token or API key needs the scope {METRICS_SCOPE}",
                )  # fmt: skip
            case ["v1", name, action, *_] if name not in OF_MANY:
                self._access.permit(caller, name, action)
