"""Stores of counts whose clock a test moves, and charges for them."""

import time
from collections.abc import Callable
from typing import Any

from governance.budgets.port import Charge
from governance.budgets.redis import RedisBudgetStore
from governance.budgets.redis_script import SCRIPT

DAY_MS = 86_400_000
LEASE_MS = 30_000
AHEAD = "seconds-ahead"


class Clock:
    """This machine's clock, moved by so many seconds. Calling it gives microseconds since 1970."""

    def __init__(self, moved: Callable[[int], Any] = lambda _: None) -> None:
        self.ahead_s = 0
        self._moved = moved

    def move(self, seconds: int) -> None:
        self.ahead_s += seconds
        self._moved(self.ahead_s)

    def __call__(self) -> int:
        return time.time_ns() // 1000 + self.ahead_s * 1_000_000

    @property
    def ms(self) -> int:
        return self() // 1000


def redis_with_clock(uri: str) -> RedisBudgetStore:
    """The store, with one line of its script changed: to the server's clock it adds what stands under `AHEAD`."""
    line = "local clock = call('TIME')"
    assert SCRIPT.count(line) == 1
    moved = f"{line}\nclock[1] = clock[1] + (tonumber(call('GET', '{AHEAD}')) or 0)"
    store = RedisBudgetStore(uri)
    store._script = store._client.register_script(SCRIPT.replace(line, moved))
    return store


def day(clock: Callable[[], int], limit: int, amount: int = 1, key: str = "tenant|support|acme|tokens") -> Charge:
    """A charge to the clock's present day in UTC."""
    start = clock() // 1000 // DAY_MS * DAY_MS
    return Charge("d", key, limit, amount, start, start + DAY_MS)


def rate(per_s: float, burst: int, key: str = "tenant|support|acme|rate") -> Charge:
    return Charge("t", key, burst, round(1e6 / per_s))


def places(limit: int, key: str = "tenant|support|acme|concurrent") -> Charge:
    return Charge("c", key, limit, 1)
