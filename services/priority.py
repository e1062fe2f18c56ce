"""Gives way to the event loop: compute threads run at a lower priority than the thread that talks HTTP.

With one compute thread per core, the event loop would wait for a time slice whenever it wakes up, and every
answer, refusal and health check with it. It needs a few per cent of a core; computing takes the rest.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["run_with_low_priority"]

NICE = 5

_T = TypeVar("_T")


def run_with_low_priority(work: Callable[[], _T]) -> _T:
    """Runs `work` on a thread of lower priority and returns its result.

    On Linux a priority belongs to a thread and is inherited, so the threads that an engine starts while it
    is opened in here have it too. Elsewhere it is only a thread.
    """
    with ThreadPoolExecutor(1, "leitstand-low", initializer=_lower) as pool:
        return pool.submit(work).result()


def _lower() -> None:
    if sys.platform == "linux":
        os.nice(NICE)  # of the calling thread alone
