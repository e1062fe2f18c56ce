"""API keys as a gateway sees them: followed in the background, looked up in memory.

Every `refresh_s` the store's revision is read, in a thread, and all keys when it rose: a revocation counts after
that long. While the store does not answer the last keys are used until `keep_s` have passed; then none is, since
nobody knows which were revoked meanwhile.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from time import monotonic

import structlog

from governance.access.api_keys import ApiKey, ApiKeyStore, find_key, key_id
from leitstand.errors import AuthenticationFailed, LeitstandError, TransientBackendError
from leitstand.types import Caller, utc_now

__all__ = ["KeyRing"]

NOBODY: tuple[ApiKey | None, Caller] = (None, Caller())
WHY = {"": "has expired", "rotated": "was replaced", "revoked": "was revoked"}

logger = structlog.get_logger()


class KeyRing:
    """Follows an `ApiKeyStore`. Start and stop it on one event loop."""

    def __init__(
        self, store: ApiKeyStore, *, refresh_s: float = 0.25, keep_s: float = 300.0,
        clock: Callable[[], datetime] = utc_now, ticks: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        self._store, self._refresh_s, self._keep_s = store, refresh_s, keep_s
        self._clock, self._ticks = clock, ticks
        self._keys: dict[str, tuple[ApiKey, Caller]] = {}
        self._revision = -1
        self._seen_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="api-keys")
        self._task: asyncio.Task[None] | None = None
        self.down: str | None = None

    def caller(self, text: str) -> Caller:
        """Who has the key `text`.

        Raises:
            AuthenticationFailed: No such key, or one that ended.
            TransientBackendError: The store did not answer for too long.
        """
        if self._ticks() - self._seen_at >= self._keep_s:
            raise TransientBackendError(
                f"API keys cannot be checked: {self.down or 'they were not read yet'}", hint="try again"
            )
        record, caller = self._keys.get(key_id(text), NOBODY)
        if not find_key(text, record) or record is None:
            raise AuthenticationFailed(
                "Not authenticated: there is no such API key", code="invalid_token",
                hint="ask whoever runs the gateway for one: `leitstand keys create`",
            )  # fmt: skip
        if not record.valid_at(self._clock()):
            raise AuthenticationFailed(
                f"Not authenticated: the API key {record.key_id} {WHY[record.ended]}", code="invalid_token",
                hint="use the key that replaced it, or ask for a new one",
            )  # fmt: skip
        return caller

    async def start(self) -> None:
        """Reads once, and goes on in the background."""
        await self.refresh()
        self._task = asyncio.create_task(self._follow(), name="api-keys")

    async def stop(self) -> None:
        """Ends the background task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def refresh(self) -> None:
        """Reads what changed; a failure is written down, not raised."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        except LeitstandError as error:
            if self.down != error.message:
                logger.warning("API keys cannot be read; the last ones stay in use", cause=error.message)
            self.down = error.message
            return
        self._seen_at, self.down = self._ticks(), None

    def _read(self) -> None:
        revision = self._store.revision()
        if revision != self._revision:
            self._keys = {key.key_id: (key, key.caller) for key in self._store.all()}
            self._revision = revision

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()
