"""The public keys of a token issuer: fetched, cached, rotated, and kept while the issuer does not answer.

Fetched again when older than `ttl_s` (in the background; requests go on with the old ones), and at once when a
token names a key that is not known, at most once per `pause_s`, so that forged ids cannot make us hammer the
issuer. When it does not answer, the last keys are used until they are `keep_s` old; then nobody gets in, because
a key that the issuer withdrew would still open the door.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Protocol

import structlog

from governance.access.tokens import SigningKey, read_keys
from leitstand.errors import LeitstandError, TransientBackendError

__all__ = ["Fetch", "IssuerKeys", "KeySource", "StaticKeys"]

logger = structlog.get_logger()

Fetch = Callable[[str], Awaitable[bytes]]
"""GETs a URL; raises `TransientBackendError` when there is no answer, or one above the size limit."""

METADATA = "/.well-known/openid-configuration"
FIRST_PAUSE_S = 1.0  # while there are no keys at all


class KeySource(Protocol):
    """Where verification keys come from."""

    def generation(self) -> int:
        """Changes whenever the keys change: what was verified before counts no more. Costs next to nothing.

        Raises:
            TransientBackendError: The keys are too old to be used.
        """
        ...

    async def keys(self, wanted: str) -> Mapping[str, SigningKey]:
        """All keys by id; looks again when `wanted` is not among them.

        Raises:
            TransientBackendError: There are none that may be used.
        """
        ...


class StaticKeys:
    """Keys that do not change."""

    def __init__(self, keys: Mapping[str, SigningKey]) -> None:
        self._keys = keys

    def generation(self) -> int:
        """See `KeySource.generation`."""
        return 0

    async def keys(self, wanted: str) -> Mapping[str, SigningKey]:
        """See `KeySource.keys`."""
        return self._keys


class IssuerKeys:
    """`KeySource` over HTTP. For one event loop.

    Args:
        issuer: Its URL; the metadata document lies below it.
        fetch: Reads a URL.
        jwks_url: Where the keys are, when the metadata should not be asked.
        ttl_s: Age at which they are fetched again.
        keep_s: Age at which they are not used any more.
        pause_s: Least time between two fetches.
        clock: Monotonic seconds.
    """

    def __init__(
        self, issuer: str, fetch: Fetch, *, jwks_url: str = "", ttl_s: float = 300.0, keep_s: float = 86_400.0,
        pause_s: float = 10.0, clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        self._issuer, self._fetch, self._jwks_url = issuer, fetch, jwks_url
        self._ttl_s, self._keep_s, self._pause_s, self._clock = ttl_s, keep_s, pause_s, clock
        self._keys: dict[str, SigningKey] = {}
        self._document: object = None
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._generation = 0
        self.down = ""

    def generation(self) -> int:
        """See `KeySource.generation`; keys that are old are fetched again meanwhile."""
        now = self._clock()
        if now - self._fetched_at >= self._ttl_s:
            self._refresh(now)
            self._refuse_old(now)
        return self._generation

    async def keys(self, wanted: str) -> Mapping[str, SigningKey]:
        """See `KeySource.keys`."""
        now = self._clock()
        age = now - self._fetched_at
        if age >= self._ttl_s or wanted not in self._keys:
            fetching = self._refresh(now)
            if fetching is not None and (wanted not in self._keys or age >= self._keep_s):
                await asyncio.shield(fetching)
        self._refuse_old(self._clock())
        return self._keys

    async def close(self) -> None:
        """Gives up a fetch that runs."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _refuse_old(self, now: float) -> None:
        if now - self._fetched_at >= self._keep_s:
            raise TransientBackendError(
                f"The keys of the token issuer are not known: {self.down or 'not fetched yet'}",
                hint="the issuer must be reachable from the gateway; see LEITSTAND_ACCESS__ISSUER",
            )

    def _refresh(self, now: float) -> "asyncio.Task[None] | None":
        """The fetch that runs, or a new one; None when the last try was a moment ago."""
        pause_s = self._pause_s if self._keys else min(self._pause_s, FIRST_PAUSE_S)
        if self._fetching is None and now - self._tried_at >= pause_s:
            self._tried_at = now
            self._fetching = asyncio.create_task(self._load(), name="issuer-keys")
            self._fetching.add_done_callback(self._done)
        return self._fetching

    def _done(self, _: "asyncio.Task[None]") -> None:
        self._fetching = None

    async def _load(self) -> None:
        try:
            document = json.loads(await self._fetch(await self._where()))
            keys = read_keys(document)
            if not keys:
                raise ValueError("no key in it can verify signatures")
        except (LeitstandError, ValueError, RecursionError) as error:
            self.down = error.message if isinstance(error, LeitstandError) else f"its keys are not readable: {error}"
            logger.warning("The token issuer's keys cannot be fetched; the last ones stay in use", cause=self.down)
            return
        self._fetched_at, self.down = self._clock(), ""
        if document != self._document:
            self._keys, self._document = keys, document
            self._generation += 1

    async def _where(self) -> str:
        if self._jwks_url:
            return self._jwks_url
        found = json.loads(await self._fetch(self._issuer.rstrip("/") + METADATA))
        if not isinstance(found, dict) or found.get("issuer") != self._issuer:
            raise ValueError("its metadata names another issuer")
        url = found.get("jwks_uri")
        schemes = ("https://",) if self._issuer.startswith("https://") else ("https://", "http://")
        if not isinstance(url, str) or not url.startswith(schemes):
            raise ValueError("its metadata names no usable jwks_uri")
        return url
