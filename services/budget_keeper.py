"""The leases of one gateway's holds, and the bookings that its store could not take yet.

Every third of a lease, and when the store answers again, the holds of long requests are renewed, bookings are
tried again, and what crashed gateways left is reconciled: their holds are booked in full, because nobody knows
what an unfinished request used, and a budget that is given back on a crash is one that crashes can overspend. A
gateway that only lost its store, and settles within a day, gets the difference back.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from time import monotonic

import structlog

from governance.budgets.port import BudgetStore, Charge
from leitstand.errors import BackendError, IntegrityError, TransientBackendError
from services.gateway_metrics import BUDGET_EXPIRED, BUDGET_STORE_UP, BUDGET_UNSETTLED

__all__ = ["UNAVAILABLE", "Keeper"]

UNAVAILABLE = (BackendError, IntegrityError)
MOST_UNSETTLED = 100_000
AT_ONCE = 100
TRY_EVERY_S = 0.25

logger = structlog.get_logger()
Booking = tuple[str, Sequence[int], Sequence[Charge]]


class Keeper:
    """Settles, now or later. For one event loop; `close` it before the loop ends.

    Args:
        store: Where the counts are.
        lease_s: After which a hold that nobody renews expires.
    """

    def __init__(self, store: BudgetStore, lease_s: float) -> None:
        self.lease_ms = round(lease_s * 1000)
        self._store = store
        self._held: dict[str, float] = {}
        self._unsettled: dict[str, Booking] = {}
        self._bookings: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._up, self._try_at = True, 0.0
        self._wake = asyncio.Event()

    def begin(self, hold: str) -> None:
        """Renews the hold from now on."""
        self._held[hold] = monotonic()
        self._start()

    def end(self, hold: str, used: Sequence[int], late: Sequence[Charge] = ()) -> "asyncio.Task[None]":
        """Books what was used; the task is done when that is done, or put off until the store answers."""
        self._held.pop(hold, None)
        self._start()
        task = asyncio.create_task(self._book((hold, used, late)))
        self._bookings.add(task)
        task.add_done_callback(self._bookings.discard)
        return task

    async def close(self) -> None:
        """Books what it can, and closes the store."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._bookings:
            await asyncio.gather(*self._bookings, return_exceptions=True)
        with contextlib.suppress(*UNAVAILABLE):
            await self._catch_up()
        await self._store.close()

    def may_ask(self) -> bool:
        """False while the store is down, but for one request now and then: the others need not wait for a time-out."""
        if self._up:
            return True
        now = monotonic()
        if now < self._try_at:
            return False
        self._try_at = now + TRY_EVERY_S
        return True

    def answered(self, error: BaseException | None = None) -> None:
        """Says in the log and the metrics whether the store answers."""
        if error is not None and self._up:
            logger.error("The store of budgets does not answer", cause=str(error))
        elif error is None and not self._up:
            logger.info("The store of budgets answers again")
        if self._up != (error is None):
            self._up, self._try_at = error is None, monotonic() + TRY_EVERY_S
            if self._up:
                self._wake.set()
            BUDGET_STORE_UP.set(self._up)

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="budget-keeper")

    async def _book(self, booking: Booking) -> None:
        try:
            if not self._up:
                raise TransientBackendError("The store of budgets did not answer a moment ago")
            await self._store.settle(*booking)
        except UNAVAILABLE as error:
            self.answered(error)
            if len(self._unsettled) < MOST_UNSETTLED:  # what has no room stays booked in full
                self._unsettled[booking[0]] = booking
                BUDGET_UNSETTLED.set(len(self._unsettled))

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.lease_ms / 3000)
            self._wake.clear()
            try:
                await self._renew()
                await self._catch_up()
                while expired := await self._store.reconcile(self.lease_ms):
                    BUDGET_EXPIRED.inc(expired)
                    logger.warning("Unfinished requests were booked in full", count=expired)
                self.answered()
            except UNAVAILABLE as error:
                self.answered(error)
            except Exception:  # whatever it is, leases must be renewed
                logger.exception("Keeping the budgets failed")

    async def _renew(self) -> None:
        before = monotonic() - self.lease_ms / 4000
        old = [hold for hold, since in self._held.items() if since <= before]
        for first in range(0, len(old), AT_ONCE):
            await self._store.renew(old[first : first + AT_ONCE], self.lease_ms)

    async def _catch_up(self) -> None:
        for hold, booking in list(self._unsettled.items()):
            await self._store.settle(*booking)
            self.answered()
            del self._unsettled[hold]
            BUDGET_UNSETTLED.set(len(self._unsettled))
