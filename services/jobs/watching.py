"""What must happen now and then, in each gateway and worker: due retries, old jobs, and the metrics of the queue."""

import asyncio

import structlog

from leitstand.errors import LeitstandError
from services.gateway_metrics import (
    JOBS_BYTES,
    JOBS_DEAD,
    JOBS_DELAYED,
    JOBS_OLDEST,
    JOBS_RUNNING,
    JOBS_STORE_UP,
    JOBS_WAITING,
)
from services.jobs.queue import JobQueue

__all__ = ["QueueWatch"]

PAUSE_S = 1.0

logger = structlog.get_logger()


class QueueWatch:
    """Sweeps once a second on the event loop that starts it. Any number of them may do it at once."""

    def __init__(self, queue: JobQueue, pause_s: float = PAUSE_S) -> None:
        self._queue = queue
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None
        self._down = ""

    async def start(self) -> None:
        """Goes on in the background."""
        self._task = asyncio.create_task(self._follow(), name="job-queue-watch")

    async def stop(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def once(self) -> None:
        """One sweep; what a failure means is written down, not raised."""
        try:
            await self._queue.sweep()
            stats = await self._queue.stats()
        except LeitstandError as error:
            if self._down != error.message:
                logger.warning("The job queue does not answer", cause=error.message)
            self._down = error.message
            JOBS_STORE_UP.set(0)
            return
        self._down = ""
        JOBS_STORE_UP.set(1)
        for name, count in stats.waiting.items():
            JOBS_WAITING.labels(name).set(count)
            JOBS_RUNNING.labels(name).set(stats.running[name])
        JOBS_DELAYED.set(stats.delayed)
        JOBS_DEAD.set(stats.dead)
        JOBS_BYTES.set(stats.bytes)
        JOBS_OLDEST.set(stats.oldest_s)

    async def _follow(self) -> None:
        while True:
            await self.once()
            await asyncio.sleep(self._pause_s)
