"""The route tables as a gateway sees them: polled from the store, kept in memory, at hand without waiting.

Every `refresh_s` the revisions are read, in a thread, and the tables that changed. While the store is down the
last good tables stay in use, and `down` says why; a gateway that never saw the store has no tables.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from leitstand.errors import LeitstandError
from leitstand.ports import RouteStore
from leitstand.types import RouteTable
from services.gateway_metrics import REVISION, STORE_UP

__all__ = ["RouteWatch"]

logger = structlog.get_logger()


class RouteWatch:
    """Follows a `RouteStore`. Start and stop it on one event loop.

    Args:
        store: Where the tables are.
        refresh_s: Pause between two looks.
        prepare: Called in a thread with the name of each use case whose table changed, before the table is used.
    """

    def __init__(
        self,
        store: RouteStore,
        refresh_s: float = 0.25,
        *,
        prepare: Callable[[str], object] = str,
    ) -> None:
        self._store = store
        self._prepare = prepare
        self.changed: Callable[[RouteTable], None] = lambda _: None
        self._refresh_s = refresh_s
        self._tables: dict[str, RouteTable] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="route-watch")
        self._task: asyncio.Task[None] | None = None
        self.down: str | None = "not read yet"
        self.seen = False

    def table(self, use_case: str) -> RouteTable | None:
        """The table in use, or None for a use case without one."""
        return self._tables.get(use_case)

    def names(self) -> Sequence[str]:
        """Use cases with a table, sorted."""
        return sorted(self._tables)

    async def start(self) -> None:
        """Reads once, so that the first request finds its table, and goes on in the background."""
        await self.refresh()
        self._task = asyncio.create_task(self._follow(), name="route-watch")

    async def stop(self) -> None:
        """Ends the background task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def refresh(self) -> None:
        """Reads what changed; what the store's failure means is written down, not raised."""
        try:
            changed = await asyncio.get_running_loop().run_in_executor(self._thread, self._changed)
        except LeitstandError as error:
            if self.down != error.message:
                logger.warning("The route store cannot be read; the last tables stay in use", cause=error.message)
            self.down = error.message
            STORE_UP.set(0)
            return
        for table in changed:
            self._tables[table.use_case] = table
            self.changed(table)
            REVISION.labels(table.use_case).set(table.revision)
        if self.down is not None and self.seen:
            logger.info("The route store answers again")
        self.down, self.seen = None, True
        STORE_UP.set(1)

    def _changed(self) -> list[RouteTable]:
        revisions = self._store.revisions()
        known = {name: table.revision for name, table in self._tables.items()}
        tables = [self._store.read(name) for name, revision in revisions.items() if known.get(name) != revision]
        for table in tables:
            if table is not None:
                self._prepare(table.use_case)
        return [table for table in tables if table is not None]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()
