"""Counts in one SQLite file: for gateways of one machine. Safe with threads and processes.

A thread books what waits as one transaction, so the event loop never waits for a disk, and a lock beside the file
is handed from process to process at once, where SQLite itself would poll. A commit survives the death of the
process; the last ones are lost when the machine loses power (no fsync per request: it would cost milliseconds).
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from governance.budgets.batching import Batcher
from governance.budgets.port import Answer, BudgetChange, Charge, Level
from governance.budgets.sqlite_counts import SCHEMA, Counts
from leitstand.errors import PermanentBackendError
from leitstand.state_file import StateFile

__all__ = ["SqliteBudgetStore"]


class SqliteBudgetStore:
    """`BudgetStore` in one file. For one event loop.

    Args:
        path: Of the file; its folder is created.
        clock_us: Microseconds since 1970: the store's clock.
    """

    def __init__(self, path: Path, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._file = StateFile(path, SCHEMA)
        self._lock_path = path.with_suffix(".lock")
        self._clock_us = clock_us
        self._lock: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="budgets")
        self._batches = Batcher(self._run)

    async def hold(self, hold: str, charges: Sequence[Charge], lease_ms: int) -> Answer:
        return await self._batches.call((Counts.hold, hold, charges, lease_ms))

    async def settle(self, hold: str, used: Sequence[int], late: Sequence[Charge] = ()) -> bool:
        return await self._batches.call((Counts.settle, hold, used, late))

    async def renew(self, holds: Sequence[str], lease_ms: int) -> None:
        if holds:
            await self._batches.call((Counts.renew, holds, lease_ms))

    async def reconcile(self, lease_ms: int) -> int:
        return await self._batches.call((Counts.reconcile, lease_ms))

    async def levels(self, charges: Sequence[Charge]) -> Sequence[Level]:
        return await self._batches.call((Counts.levels, charges))

    async def now_ms(self) -> int:
        return await self._batches.call((Counts.now_ms,))

    async def grant(self, charge: Charge, change: BudgetChange) -> None:
        await self._batches.call((Counts.grant, charge, change))

    async def reset(self, charge: Charge, change: BudgetChange) -> int:
        return await self._batches.call((Counts.reset, charge, change))

    async def changes(self) -> Sequence[BudgetChange]:
        return await self._batches.call((Counts.changes,))

    async def keys(self, start_ms: int) -> Sequence[str]:
        return await self._batches.call((Counts.keys, start_ms))

    async def close(self) -> None:
        """Waits for the calls on their way, and closes the file."""
        await self._batches.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _run(self, calls: Sequence[Any]) -> Sequence[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, calls)

    def _transact(self, calls: Sequence[Any]) -> Sequence[Any]:
        with self._locked(), self._file.transaction() as connection:
            counts = Counts(connection, self._clock_us())
            return [function(counts, *values) for function, *values in calls]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            self._lock = self._open()
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the kernel frees it when a process dies
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _open(self) -> int:
        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise PermanentBackendError(
                f"{self._lock_path} cannot be used: {error}", hint="check disk space and rights"
            ) from error
        with self._file.reading() as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
        return lock

    def _close(self) -> None:
        self._file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
