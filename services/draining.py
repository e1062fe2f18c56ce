"""A soft end: on SIGTERM the worker first says it is not ready, goes on answering for a moment, then stops.

uvicorn closes connections whose request it has not read yet the moment it stops. Requests that clients
sent before they could know would be reset. During the grace period the service reports unready, so load
balancers turn away, and every answer closes its connection.
"""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

__all__ = ["GRACE_S", "drain_on_sigterm"]

GRACE_S = 1.0


def drain_on_sigterm(begin: Callable[[], None], grace_s: float = GRACE_S) -> None:
    """Calls `begin` at SIGTERM, and the handler that was installed before `grace_s` later.

    Call it on the event loop of the main thread, after the server has installed its own handler.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        return
    loop = asyncio.get_running_loop()

    def start(number: int, frame: FrameType | None) -> None:
        begin()
        loop.call_soon_threadsafe(lambda: loop.call_later(grace_s, stop, number, None))

    signal.signal(signal.SIGTERM, start)
