"""Stores of counts whose clock a test moves, and charges for them."""

import time
from collections.abc import Callable
from typing import Any

from governance.budgets.port import Charge
from governance.budgets.redis import RedisBudgetStore
from governance.budgets.redis_script import SCRIPT

DAY_MS = 86_400_000
LEASE_MS = 30_000
NOW = "the-time"


class Clock:
    """A clock that stands at noon, UTC, until a test moves it. Calling it gives microseconds since 1970."""

    def __init__(self, moved: Callable[[int], Any] = lambda _: None) -> None:
        self._started = int(time.time()) // 86_400 * 86_400 + 43_200
        self._moved = moved
        self.ahead_s = 0
        self.move(0)

    def move(self, seconds: int) -> None:
        self.ahead_s += seconds
        self._moved(self._started + self.ahead_s)

    def __call__(self) -> int:
        return (self._started + self.ahead_s) * 1_000_000

    @property
    def ms(self) -> int:
        return self() // 1000


def redis_with_clock(uri: str) -> RedisBudgetStore:
    """The store, with one line of its script changed: instead of the server's time it takes what stands under `NOW`."""
    line = "local clock = call('TIME')"
    assert SCRIPT.count(line) == 1
    store = RedisBudgetStore(uri)
    store._script = store._client.register_script(SCRIPT.replace(line, f"local clock = {{call('GET', '{NOW}'), 0}}"))
    return store


def day(clock: Callable[[], int], limit: int, amount: int = 1, key: str = "tenant|support|acme|tokens") -> Charge:
    """A charge to the clock's present day in UTC."""
    start = clock() // 1000 // DAY_MS * DAY_MS
    return Charge("d", key, limit, amount, start, start + DAY_MS)


def rate(per_s: float, burst: int, key: str = "tenant|support|acme|rate") -> Charge:
    return Charge("t", key, burst, round(1e6 / per_s))


def places(limit: int, key: str = "tenant|support|acme|concurrent") -> Charge:
    return Charge("c", key, limit, 1)
