"""The writer of a trail: a thread that gathers records into groups, and tells who waits when they are on disk.

A record is *strict* (somebody awaits that it is durable) or *relaxed* (written within `flush_s`). While the disk is
busy with one group, the next one gathers, so a record costs a fraction of a flush under load and one flush alone.
Encryption and hashing happen on the thread, too.

When writing fails, strict records fail and relaxed ones stay in their bounded queue; those that no longer fit are
counted. Once a second the thread tries again by itself, and the first thing it then writes says how long nothing could
be written and how many were lost. `down` says what is wrong meanwhile.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from governance.audit.chain import SEGMENT_BYTES, Chain, event
from governance.audit.keys import KeyStore, Scope, SubjectKey
from governance.audit.records import Entry, encode
from governance.audit.signing import Signer
from leitstand.errors import LeitstandError, PermanentBackendError, TransientBackendError

__all__ = ["AuditUnavailable", "Trail"]

RETRY_S = 1.0
GROUP = 1024
Waiting = tuple[Entry, "asyncio.Future[None] | None"]

logger = structlog.get_logger()


class AuditUnavailable(TransientBackendError):
    """The record of an inference cannot be made durable, so its answer may not leave."""


class Trail:
    """Appends to one chain of the trail in `folder`. Call it from one event loop; `start` and `close` from any thread.

    Args:
        folder: The trail.
        keys: Opens the key store; called on the writer's thread.
        signer: Opens the signing key; called on the writer's thread.
        flush_s: Within which relaxed records are written.
        limit: Records that may wait; strict ones beyond are refused, relaxed ones lost and counted.
        segment_bytes: After which a new file is begun.
    """

    def __init__(
        self,
        folder: Path,
        keys: Callable[[], KeyStore],
        signer: Callable[[], Signer],
        *,
        flush_s: float = 0.5,
        limit: int = 10_000,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder = folder
        self.down = "the audit trail is not open yet"
        self.lost = 0
        self._open_keys, self._open_signer = keys, signer
        self._flush_s, self._limit, self._segment_bytes = flush_s, limit, segment_bytes
        self._strict: deque[Waiting] = deque()
        self._relaxed: deque[Waiting] = deque()
        self._told_lost = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._opened = threading.Event()
        self._chain: Chain | None = None
        self._keys: KeyStore | None = None
        self._signer: Signer | None = None
        self._down_since = 0.0
        self._flushed_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self, wait_s: float = 0.0) -> None:
        """Starts the writer; it opens the chain itself, and tries again while that fails.

        Args:
            wait_s: How long to wait for its first attempt.
        """
        self._thread.start()
        self._opened.wait(wait_s)

    def close(self) -> None:
        """Writes what waits, signs the end of the chain, and returns when the thread is done."""
        if self._thread.ident is not None:
            self._closing.set()
            self._wake.set()
            self._thread.join()

    async def durable(self, entry: Entry) -> None:
        """Returns when the record is on disk.

        Raises:
            AuditUnavailable: It is not, and will not be.
        """
        if self._closing.is_set() or len(self._strict) >= self._limit:
            raise AuditUnavailable(
                "The audit record cannot be written: " + ("the trail is closed" if self._closing.is_set() else
                f"{len(self._strict)} wait already"), hint="try again")  # fmt: skip
        future = asyncio.get_running_loop().create_future()
        self._strict.append((entry, future))
        if not self._wake.is_set():
            self._wake.set()
        await future

    def later(self, entry: Entry) -> bool:
        """Queues a relaxed record; False when there is no room and it was lost, which the trail will say."""
        if self._closing.is_set() or len(self._relaxed) >= self._limit:
            self.lost += 1
            return False
        self._relaxed.append((entry, None))
        return True

    def _run(self) -> None:
        while not self._closing.is_set():
            self._cycle()
            self._opened.set()
            self._wake.wait(RETRY_S if self.down else self._flush_s)
            self._wake.clear()
        self._cycle()
        self._end()

    def _cycle(self) -> None:
        """Writes everything that waits; whatever goes wrong is told to those who wait, and tried again later."""
        try:
            chain = self._usable_chain()
            self._say_what_was_lost(chain)
            now = time.monotonic()
            while self._strict or (self._relaxed and self._is_due(now)):
                self._write_group(chain)
            chain.sign(time.monotonic())
        except Exception as error:  # the boundary: the thread must outlive whatever a disk does
            self._failed(error)

    def _is_due(self, now: float) -> bool:
        return now - self._flushed_at >= self._flush_s or self._closing.is_set()

    def _usable_chain(self) -> Chain:
        if self._keys is None or self._signer is None:
            self._keys, self._signer = self._open_keys(), self._open_signer()
        if self._chain is None or not self._chain.usable:
            self._chain = None
            self._chain = Chain.take(self.folder, self._signer, segment_bytes=self._segment_bytes)
            if not self._down_since:
                self.down = ""
        return self._chain

    def _say_what_was_lost(self, chain: Chain) -> None:
        lost = self.lost
        if self.down and self._down_since:
            seconds = round(time.monotonic() - self._down_since, 1)
            chain.append([event("resumed", after_s=seconds, cause=self.down[:300])])
            logger.info("The audit trail is written again", after_s=seconds)
            self.down, self._down_since = "", 0.0
        if lost != self._told_lost:
            chain.append([event("lost", records=lost - self._told_lost)])
            self._told_lost = lost

    def _write_group(self, chain: Chain) -> None:
        """One group: strict records first in line, relaxed ones with them; either all become durable or none."""
        group = [self._strict.popleft() for _ in range(min(len(self._strict), GROUP))]
        relaxed = [self._relaxed[index] for index in range(min(len(self._relaxed), GROUP))]
        try:
            bodies = self._encoded(chain, [*group, *relaxed])
            if bodies:
                chain.append(bodies)
        except Exception:
            self._strict.extendleft(reversed(group))  # `_failed` answers them, when `down` says why
            raise
        for _ in relaxed:
            self._relaxed.popleft()
        self._flushed_at = time.monotonic()
        _answer(group, None)

    def _encoded(self, chain: Chain, group: Sequence[Waiting]) -> list[bytes]:
        """The bodies in their order; an entry that cannot be written as JSON fails alone."""
        assert self._keys is not None  # noqa: S101 -- opened with the chain
        keys: dict[Scope, SubjectKey] = self._keys.keys({entry.scope for entry, _ in group})
        bodies: list[bytes] = []
        for entry, future in group:
            try:
                bodies.append(encode(entry, keys[entry.scope], chain.name, chain.sequence + len(bodies) + 1))
            except (TypeError, ValueError) as error:
                self.lost += 1
                logger.error("An audit record cannot be written", cause=str(error)[:300])
                if future is not None:
                    wrong = PermanentBackendError(f"The audit record cannot be written: {error}")
                    _answer([(entry, future)], wrong)
        return bodies

    def _failed(self, error: Exception) -> None:
        explained = _explained(error)
        if not self._down_since:
            self._down_since = time.monotonic()
            logger.error("The audit trail cannot be written", cause=explained.message)
        self.down = explained.message
        _answer([self._strict.popleft() for _ in range(len(self._strict))], explained)

    def _end(self) -> None:
        self.down = self.down or "the audit trail is closed"
        if self._chain is not None and self._chain.usable:
            with suppress(OSError):
                self._chain.close(time.monotonic())
        if self._keys is not None:
            self._keys.close()


def _explained(error: Exception) -> AuditUnavailable:
    if isinstance(error, AuditUnavailable):
        return error
    said = error.strerror if isinstance(error, OSError) and error.strerror else None
    said = said or (error.message if isinstance(error, LeitstandError) else f"{type(error).__name__}: {error}")
    return AuditUnavailable(f"The audit record cannot be written: {said}", hint="see the gateway's /readyz")


def _answer(group: Sequence[Waiting], error: Exception | None) -> None:
    """Wakes everybody who waits, with one call per event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, future in group:
        if future is not None:
            loops.setdefault(future.get_loop(), []).append(future)
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(_settle, futures, error)


def _settle(futures: Sequence["asyncio.Future[None]"], error: Exception | None) -> None:
    for future in futures:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
