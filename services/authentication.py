"""Stage *authenticate*: who asks, and whether they may; the same check for every other route of the gateway.

A credential is a bearer token of the issuer, or an API key in ``x-api-key`` or as bearer. Verified tokens are
remembered by digest until they expire or the issuer's keys change, so that a known caller costs microseconds.

Whose request it is, and for whom: the caller is who the credential names, and stands in the audit record as it is.
The exchange's subject is for whom the answer is made. A person's token sets it, and neither body nor header can
change that; a caller with the scope ``USE_CASE:on_behalf`` may name another, and then both are on record. The
credential of a service stands for many people: without a named subject its requests are spread by request id, since
otherwise all of them would meet a canary, or none.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from time import time
from typing import Protocol

from governance.access.api_keys import PREFIX
from governance.access.dev_issuer import KID_PREFIX
from governance.access.issuer_keys import KeySource
from governance.access.key_ring import KeyRing
from governance.access.tokens import TokenVerifier, Verified, key_id_of
from leitstand.errors import AuthenticationFailed, PolicyDenied, ScopeMissing
from leitstand.specs.access import AccessSpec
from leitstand.types import Caller
from services.exchange import Exchange
from services.gateway_metrics import AUTHENTICATED

__all__ = ["Access", "Authenticator", "Issuer", "OpenAccess"]

ANYBODY = Caller()
ON_BEHALF = "on_behalf"
Headers = Mapping[bytes, bytes]


class Access(Protocol):
    """Who may use the gateway."""

    async def identify(self, headers: Headers) -> Caller:
        """Who sends these headers.

        Raises:
            AuthenticationFailed: Nobody we know.
            TransientBackendError: It cannot be checked now.
        """
        ...

    def permit(self, caller: Caller, use_case: str, action: str) -> None:
        """Returns when the caller may do `action` with the use case.

        Raises:
            ScopeMissing: The caller lacks a scope.
            PolicyDenied: The use case is not for the caller's tenant.
        """
        ...

    async def __call__(self, exchange: Exchange) -> None:
        """The stage *authenticate*."""
        ...

    async def start(self) -> None:
        """Begins to follow keys."""
        ...

    async def stop(self) -> None:
        """Ends that."""
        ...


class OpenAccess:
    """Everybody is the anonymous caller: for one machine, on its loopback address."""

    async def identify(self, headers: Headers) -> Caller:
        """See `Access.identify`."""
        return ANYBODY

    def permit(self, caller: Caller, use_case: str, action: str) -> None:
        """See `Access.permit`."""

    async def __call__(self, exchange: Exchange) -> None:
        """See `Access.__call__`."""

    async def start(self) -> None:
        """See `Access.start`."""

    async def stop(self) -> None:
        """See `Access.stop`."""


class Issuer:
    """Tokens of one issuer: its rules, and where its keys come from."""

    def __init__(self, verifier: TokenVerifier, source: KeySource) -> None:
        self.verifier, self.source = verifier, source


class Authenticator:
    """`Access` by tokens and API keys. For one event loop.

    Args:
        issuer: Whose tokens are accepted; None: nobody's.
        dev_issuer: The issuer of this machine.
        ring: The API keys.
        specs: The key `access` of a use case.
        max_bytes: Longer credentials are not looked at.
        remembered: Verified tokens that are kept at most.
        clock: Unix time.
    """

    def __init__(
        self, *, issuer: Issuer | None, dev_issuer: Issuer | None, ring: KeyRing, specs: Callable[[str], AccessSpec],
        max_bytes: int = 8192, remembered: int = 10_000, clock: Callable[[], float] = time,
    ) -> None:  # fmt: skip
        self._issuer, self._dev_issuer, self._ring = issuer, dev_issuer, ring
        self._specs = lru_cache(maxsize=256)(specs)
        self._max_bytes, self._remembered, self._clock = max_bytes, remembered, clock
        self._known: dict[bytes, tuple[Verified, Issuer, int]] = {}

    async def identify(self, headers: Headers) -> Caller:
        """See `Access.identify`."""
        return (await self._verified(headers)).caller

    def permit(self, caller: Caller, use_case: str, action: str) -> None:
        """See `Access.permit`."""
        spec = self._specs(use_case)
        scope = spec.scope(use_case, action)
        if scope not in caller.scopes:
            raise _lacks(caller, scope, f"may not ask for '{action}' of '{use_case}'")
        if spec.tenants and caller.tenant not in spec.tenants:
            raise PolicyDenied(
                f"'{use_case}' is not open to the tenant '{caller.tenant}'", hint="its `access.tenants` lists who may"
            )

    async def __call__(self, exchange: Exchange) -> None:
        """See `Access.__call__`."""
        if exchange.caller == ANYBODY:
            verified = await self._verified(exchange.headers)
            exchange.caller, person = verified.caller, verified.person
        else:  # a worker's exchange, whose caller was known when it was queued
            person = False
        caller, named = exchange.caller, exchange.subject
        self.permit(caller, exchange.use_case, "predict")
        if not named:
            exchange.subject = caller.subject if person else ""
        elif named != caller.subject:
            scope = self._specs(exchange.use_case).scope(exchange.use_case, ON_BEHALF)
            if scope not in caller.scopes:
                exchange.subject = caller.subject
                raise _lacks(caller, scope, "may not ask on behalf of another subject")

    async def start(self) -> None:
        """See `Access.start`."""
        await self._ring.start()

    async def stop(self) -> None:
        """See `Access.stop`."""
        await self._ring.stop()
        close = getattr(self._issuer.source, "close", None) if self._issuer else None
        if close is not None:
            await close()

    async def _verified(self, headers: Headers) -> Verified:
        try:
            credential = self._credential(headers)
            if credential.startswith(PREFIX):
                verified, method = Verified(self._ring.caller(credential), 0.0, person=False), "api-key"
            else:
                verified, method = await self._token(credential), "jwt"
        except AuthenticationFailed:
            AUTHENTICATED.labels("none", "refused").inc()
            raise
        AUTHENTICATED.labels(method, "accepted").inc()
        return verified

    def _credential(self, headers: Headers) -> str:
        key, bearer = headers.get(b"x-api-key"), headers.get(b"authorization")
        if key is None and bearer is None:
            raise AuthenticationFailed(
                "Not authenticated: this gateway asks for a bearer token or an API key",
                hint="send `Authorization: Bearer TOKEN`, or `x-api-key: KEY`",
            )
        if key is not None and bearer is not None:
            raise _malformed("there are two credentials, and they may name two callers")
        if bearer is not None:
            scheme, _, value = bearer.partition(b" ")
            if scheme.lower() != b"bearer":
                raise _malformed("the scheme of the header authorization is not Bearer")
        else:
            value = key or b""
        value = value.strip()
        if len(value) > self._max_bytes:
            raise _malformed(f"the credential is longer than {self._max_bytes} bytes")
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            raise _malformed("the credential holds characters that none has") from None

    async def _token(self, token: str) -> Verified:
        """What the token says; known tokens are found by a digest, so that memory holds none of them."""
        digest, now = blake2b(token.encode(), digest_size=16).digest(), self._clock()
        known = self._known.get(digest)
        if known is not None:
            verified, issuer, generation = known
            if now < verified.until and issuer.source.generation() == generation:
                return verified
            del self._known[digest]
        wanted = key_id_of(token, self._max_bytes)
        issuer = self._dev_issuer if self._dev_issuer and wanted.startswith(KID_PREFIX) else self._issuer
        if issuer is None:
            raise _malformed("tokens of this issuer are not accepted here")
        keys = await issuer.source.keys(wanted)
        verified = issuer.verifier.verify(token, keys, self._clock())
        if len(self._known) >= self._remembered:
            del self._known[next(iter(self._known))]
        self._known[digest] = verified, issuer, issuer.source.generation()
        return verified


def _lacks(caller: Caller, scope: str, what: str) -> ScopeMissing:
    return ScopeMissing(f"'{caller.subject}' {what}", scope=scope, hint=f"a token or API key needs the scope {scope}")


def _malformed(what: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"Not authenticated: {what}", code="invalid_token",
        hint="send `Authorization: Bearer TOKEN`, or `x-api-key: KEY`",
    )  # fmt: skip
