"""The worker: takes jobs, runs several at once, renews their leases, gives back what it holds when it ends.

Loses nothing when it is killed: its jobs go to others when their leases end. While Redis is away it holds on to
what it runs and keeps asking.
"""

import asyncio
import os
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import structlog

from leitstand.errors import LeitstandError, TransientBackendError
from services.gateway_metrics import JOB_SECONDS
from services.jobs.queue import JobQueue
from services.jobs.records import Taken
from services.jobs.running import Attempt

__all__ = ["Worker"]

AWAY_S = 1.0
LOW_FIRST_EVERY = 8  # so that low priority moves even when high never ends

logger = structlog.get_logger()


class Worker:
    """Runs on one event loop until `stop`.

    Args:
        queue: Where jobs come from.
        attempt: What is done with one.
        use_cases: Whose jobs; empty: all.
        concurrency: Jobs at once.
        lease_s: Silence after which others take this worker's jobs.
        poll_s: How often an idle worker looks.
        drain_s: Time that the chunks in flight get after `stop`.
    """

    def __init__(
        self, queue: JobQueue, attempt: Attempt, *, use_cases: Sequence[str] = (), concurrency: int = 4,
        lease_s: float = 30.0, poll_s: float = 0.1, drain_s: float = 20.0,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._attempt = attempt
        self._use_cases = tuple(use_cases)
        self._concurrency = concurrency
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._drain_s = drain_s
        self._stopping = asyncio.Event()
        self._running: dict[asyncio.Task[None], Taken] = {}
        self._taken = 0
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """No further job is taken; those that run are given back after the chunk they are at."""
        self._stopping.set()

    async def run(self) -> None:
        """Returns after `stop`, when every job is ended or given back."""
        while not self._stopping.is_set():
            await self._step()
        await self._drain()

    async def _step(self) -> None:
        if len(self._running) >= self._concurrency:
            await self._until_stopped(asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED))
            return
        try:
            low_first = self._taken % LOW_FIRST_EVERY == LOW_FIRST_EVERY - 1
            taken = await self._queue.take(self.name, self._use_cases, self._lease_s, low_first=low_first)
        except LeitstandError as error:
            logger.warning("No job can be taken", cause=error.message)
            await self._until_stopped(asyncio.sleep(AWAY_S))
            return
        if taken is None:
            await self._until_stopped(asyncio.sleep(self._poll_s))
            return
        self._taken += 1
        task = asyncio.create_task(self._run(taken), name=f"job {taken.id}")
        self._running[task] = taken
        task.add_done_callback(lambda done: self._running.pop(done, None))

    async def _run(self, taken: Taken) -> None:
        """The job and its heartbeat; whoever ends first ends the other."""
        begun = perf_counter()
        work = asyncio.create_task(self._attempt.run(taken, self._stopping.is_set))
        beat = asyncio.create_task(self._beat(taken))
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (work, beat):
                each.cancel()
            outcome = (await asyncio.gather(work, beat, return_exceptions=True))[0]
        JOB_SECONDS.labels(taken.use_case).observe(perf_counter() - begun)
        logger.info(
            "An attempt at a job ended", job=taken.id, use_case=taken.use_case, attempt=taken.attempt,
            outcome=outcome if isinstance(outcome, str) else "lost",
        )  # fmt: skip

    async def _beat(self, taken: Taken) -> None:
        """Renews the lease until somebody else has the job."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            with suppress(TransientBackendError):
                if await self._queue.renew(taken) != "running":
                    return

    async def _drain(self) -> None:
        held = dict(self._running)
        if not held:
            return
        _, late = await asyncio.wait(held, timeout=self._drain_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in late:
            with suppress(LeitstandError):
                await self._attempt.give_back(held[task])

    async def _until_stopped(self, what: Coroutine[Any, Any, Any]) -> None:
        stop = asyncio.ensure_future(self._stopping.wait())
        work = asyncio.ensure_future(what)
        await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
        for each in (stop, work):
            each.cancel()
        await asyncio.gather(stop, work, return_exceptions=True)
