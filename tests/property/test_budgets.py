"""Budgets: whatever happens in which order, nothing is overspent and nothing is lost; days tile time."""

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from governance.budgets.batching import Batcher
from governance.budgets.days import Days
from governance.budgets.port import BudgetStore
from governance.budgets.pricing import Prices, micros, tokens_of
from governance.budgets.sqlite import SqliteBudgetStore
from leitstand.specs.budgets import PricesSpec
from tests.budgets_for_tests import LEASE_MS, NOW, Clock, day, places, redis_with_clock
from tests.servers import RedisServer

LIMIT, SEATS = 20, 3
ZONES = ("UTC", "Europe/Berlin", "America/Havana", "America/Sao_Paulo", "Asia/Beirut", "Australia/Lord_Howe",
    "Pacific/Apia", "Africa/Cairo", "Atlantic/Azores", "Asia/Kathmandu")  # fmt: skip


class Budget(RuleBasedStateMachine):
    """A model of the promise: `spent` and `reserved` as sums over what every hold is known to be."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clean = ExitStack()
        self.clock = Clock()
        self.stores = self.opened()
        self.charge = day(self.clock, LIMIT)
        self.known: dict[str, tuple[int, int]] = {}  # hold → amount, end of lease in seconds ahead
        self.spent, self.granted, self.number = 0, 0, 0
        self.expired: dict[str, int] = {}

    def opened(self) -> list[BudgetStore]:
        folder = Path(self.clean.enter_context(tempfile.TemporaryDirectory()))
        return [SqliteBudgetStore(folder / "budgets.db", self.clock) for _ in range(2)]

    def do(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)

    @property
    def reserved(self) -> int:
        return sum(amount for amount, _ in self.known.values())

    @rule(target=holds, amount=st.integers(0, 8), gateway=st.integers(0, 1))
    def hold(self, amount: int, gateway: int) -> str:
        self.number += 1
        name = f"hold-{self.number}"
        charge = self.charge._replace(amount=amount)
        answer = self.do(self.stores[gateway].hold(name, [charge, places(SEATS)], LEASE_MS))
        free = LIMIT + self.granted - self.spent - self.reserved
        seats = sum(ends > self.clock.ahead_s for _, ends in self.known.values())
        assert (answer.state == "held") == (amount <= max(free, 0) and seats < SEATS)
        if answer.state == "held":
            self.known[name] = (amount, self.clock.ahead_s + LEASE_MS // 1000)
        return name

    @rule(name=holds, share=st.integers(0, 4), gateway=st.integers(0, 1))
    def settle(self, name: str, share: int, gateway: int) -> None:
        amount = self.known.get(name, (self.expired.get(name, 0), 0))[0]
        used = amount * share // 4
        found = self.do(self.stores[gateway].settle(name, [used, 0]))
        assert found == (name in self.known or name in self.expired)
        if name in self.known:
            del self.known[name]
            self.spent += used
        elif name in self.expired:
            self.spent += used - self.expired.pop(name)

    @rule(name=holds, gateway=st.integers(0, 1))
    def renew(self, name: str, gateway: int) -> None:
        self.do(self.stores[gateway].renew([name], LEASE_MS))
        ends = self.clock.ahead_s + LEASE_MS // 1000
        if name in self.known:
            self.known[name] = (self.known[name][0], ends)
        elif name in self.expired:
            self.known[name] = (self.expired.pop(name), ends)
            self.spent -= self.known[name][0]

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.clock.move(seconds)

    @rule(gateway=st.integers(0, 1))
    def reconcile(self, gateway: int) -> None:
        ended = [name for name, (_, ends) in self.known.items() if ends <= self.clock.ahead_s]
        assert self.do(self.stores[gateway].reconcile(LEASE_MS)) == len(ended)
        for name in ended:
            self.expired[name] = self.known.pop(name)[0]
            self.spent += self.expired[name]

    @invariant()
    def nothing_is_overspent_and_nothing_is_lost(self) -> None:
        (level,) = self.do(self.stores[0].levels([self.charge]))
        assert level == (self.spent, self.reserved, self.granted)
        assert level.spent + level.reserved <= LIMIT

    def teardown(self) -> None:
        for store in self.stores:
            self.do(store.close())
        self.loop.close()
        self.clean.close()


TestBudgetInSqlite = Budget.TestCase
TestBudgetInSqlite.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_the_same_promise_holds_in_redis(redis_server: RedisServer) -> None:
    uri = redis_server.database()

    class BudgetInRedis(Budget):
        def opened(self) -> list[BudgetStore]:
            client = redis_server.client(uri)
            self.clean.callback(client.close)
            client.flushdb()
            self.clock = Clock(lambda now: client.set(NOW, now))
            return [redis_with_clock(uri) for _ in range(2)]

    run_state_machine_as_test(
        BudgetInRedis, settings=settings(max_examples=15, stateful_step_count=25, deadline=None, database=None)
    )


@settings(deadline=None)
@given(st.sampled_from(ZONES), st.integers(0, 4_102_444_800_000))
@example("America/Havana", int(datetime(2026, 11, 1, 5, 30, tzinfo=UTC).timestamp() * 1000))
@example("Asia/Beirut", int(datetime(2026, 3, 28, 22, 0, tzinfo=UTC).timestamp() * 1000))
def test_days_tile_time_and_start_at_midnight(zone: str, now: int) -> None:
    days = Days(zone)
    start, end = days.span(now)
    assert start <= now < end
    assert 22 * 3_600_000 <= end - start <= 26 * 3_600_000 or zone == "Pacific/Apia"
    assert Days(zone).span(end)[0] == end
    assert Days(zone).span(start - 1)[1] == start
    assert days.span(start) == days.span(end - 1) == (start, end)
    first = datetime.fromtimestamp(start / 1000, ZoneInfo(zone))
    assert first.hour in (0, 1)


def test_a_day_of_changing_clocks_has_23_or_25_hours() -> None:
    def hours(*date: int) -> float:
        noon = datetime(*date, 12, tzinfo=ZoneInfo("Europe/Berlin"))  # type: ignore[misc]
        start, end = Days("Europe/Berlin").span(int(noon.timestamp() * 1000))
        return (end - start) / 3_600_000

    assert (hours(2026, 3, 29), hours(2026, 10, 25), hours(2026, 6, 1)) == (23, 25, 24)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), *[st.decimals(0, 1000, places=6)] * 3)
def test_a_price_is_rounded_up_by_less_than_a_millionth(
    read: int, written: int, per_in: Decimal, per_out: Decimal, each: Decimal
) -> None:
    prices = Prices(PricesSpec(per_million_tokens_in=per_in, per_million_tokens_out=per_out, per_request=each))
    exact = (Fraction(per_in) * read + Fraction(per_out) * written) / 10**6 + Fraction(each)
    assert 0 <= prices.of(read, written).cost_micros - exact * 10**6 < 1
    assert prices.free == (per_in == per_out == each == 0)


@settings(deadline=None)
@given(st.lists(st.text()), st.integers(1, 50))
def test_estimates_grow_with_the_text_and_end_at_the_models_limit(texts: list[str], most: int) -> None:
    tokens = tokens_of(texts, most)
    assert tokens <= most * len(texts)
    assert tokens_of([text + "x" for text in texts], most) >= tokens
    assert micros(Decimal("0.000001")) == 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=5), st.booleans())
def test_calls_keep_their_order_and_each_gets_its_own_answer(waves: list[int], fail: bool) -> None:
    seen: list[int] = []

    async def execute(calls):
        await asyncio.sleep(0)
        seen.extend(calls)
        if fail and calls[0] % 2:
            raise ValueError(calls[0])
        return [2 * call for call in calls]

    async def run() -> None:
        batcher, number = Batcher(execute), 0
        for wave in waves:
            calls = range(number, number + wave)
            number += wave
            results = await asyncio.gather(*map(batcher.call, calls), return_exceptions=True)
            for call, result in zip(calls, results, strict=True):
                assert result == 2 * call or (fail and isinstance(result, ValueError))
        await batcher.close()
        assert seen == list(range(number))

    asyncio.run(run())


async def test_a_caller_that_gives_up_disturbs_nobody() -> None:
    release = asyncio.Event()

    async def execute(calls):
        await release.wait()
        return calls

    batcher = Batcher(execute)
    calls = [asyncio.create_task(batcher.call(number)) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    release.set()
    assert await asyncio.gather(calls[0], calls[2]) == [0, 2]
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    await batcher.close()
