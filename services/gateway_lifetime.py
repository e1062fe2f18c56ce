"""Opening and closing the parts of a gateway, in order: for the HTTP server, and for workers that have none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.gateway_wiring import Gateway

__all__ = ["opened"]


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[None]:
    """The parts are open for the length of the block; at its end every answer is with the inference log."""
    await gateway.upstreams.open()
    await gateway.routes.start()
    try:
        yield
    finally:
        await gateway.inference.close()
        await gateway.routes.stop()
        await gateway.upstreams.close()
        await asyncio.to_thread(gateway.recorder.close)
        await asyncio.to_thread(gateway.inference_log.close)
        for watcher in gateway.watchers:
            await asyncio.to_thread(watcher.close)
