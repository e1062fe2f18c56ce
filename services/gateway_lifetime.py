"""Opening and closing the parts of a gateway, in order: for the HTTP server, and for workers that have none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.gateway_wiring import Gateway
from services.jobs.watching import QueueWatch

__all__ = ["opened"]


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[None]:
    """The parts are open for the length of the block; at its end every answer is with the inference log."""
    if gateway.auditor is not None:
        await gateway.auditor.start()
    await gateway.upstreams.open()
    await gateway.access.start()
    await gateway.routes.start()
    watch = QueueWatch(gateway.jobs) if gateway.jobs is not None else None
    if watch is not None:
        await watch.start()
    try:
        yield
    finally:
        if watch is not None:
            await watch.stop()
        await gateway.inference.close()
        await gateway.routes.stop()
        await gateway.access.stop()
        await gateway.upstreams.close()
        if gateway.budgeting is not None:
            await gateway.budgeting.close()
        if gateway.auditor is not None:
            await gateway.auditor.close()
        if gateway.jobs is not None:
            await gateway.jobs.close()
        await asyncio.to_thread(gateway.recorder.close)
        await asyncio.to_thread(gateway.inference_log.close)
        for watcher in gateway.watchers:
            await asyncio.to_thread(watcher.close)
