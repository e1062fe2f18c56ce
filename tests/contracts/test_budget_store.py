"""One contract for the stores of counts: SQLite and a real Redis, each with a clock that the tests move."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from governance.budgets.opening import open_budget_store
from governance.budgets.port import Answer, BudgetChange, BudgetStore, Level
from governance.budgets.redis import RedisBudgetStore
from governance.budgets.sqlite import SqliteBudgetStore
from leitstand.errors import ConfigurationError, IntegrityError, PermanentBackendError, TransientBackendError
from leitstand.settings import BudgetSettings, Settings
from leitstand.types import utc_now
from tests.budgets_for_tests import DAY_MS, LEASE_MS, NOW, Clock, day, places, rate, redis_with_clock
from tests.servers import free_ports

HUGE = 10**14


@dataclass
class Bench:
    """Views of one store, as other gateways would have them."""

    open: Callable[[], BudgetStore]
    clock: Clock
    store: BudgetStore

    async def hold(self, name: str, *charges) -> Answer:
        return await self.store.hold(name, charges, LEASE_MS)

    async def level(self, charge) -> Level:
        (level,) = await self.store.levels([charge])
        return level


@pytest.fixture(params=["sqlite", "redis"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    opened: list[BudgetStore] = []
    uri, clock = "", Clock()
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        uri = server.database()
        clock = Clock(lambda now: server.client(uri).set(NOW, now))

    def open_one() -> BudgetStore:
        opened.append(redis_with_clock(uri) if uri else SqliteBudgetStore(tmp_path / "budgets.db", clock))
        return opened[-1]

    yield Bench(open_one, clock, open_one())
    for store in opened:
        await store.close()


async def test_what_is_held_is_reserved_and_what_was_used_is_booked(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    answer = await bench.hold("a", charge)
    assert (answer.state, answer.left) == ("held", (70,))
    assert answer.now_ms == bench.clock.ms
    assert await bench.level(charge) == (0, 30, 0)
    assert await bench.store.settle("a", [12])
    assert await bench.level(charge) == (12, 0, 0)
    assert not await bench.store.settle("a", [12])
    assert await bench.level(charge) == (12, 0, 0)


async def test_the_last_unit_is_given_and_no_unit_more(bench: Bench) -> None:
    charge = day(bench.clock, 100, 50)
    assert (await bench.hold("a", charge)).state == (await bench.hold("b", charge)).state == "held"
    answer = await bench.hold("c", charge._replace(amount=1))
    assert (answer.state, answer.refused, answer.left) == ("refused", 0, (0,))
    assert answer.wait_ms == charge.end_ms - answer.now_ms
    assert (await bench.hold("d", charge._replace(amount=0))).state == "held"
    assert (await bench.level(charge)).reserved == 100


async def test_one_limit_that_refuses_leaves_the_others_untouched(bench: Bench) -> None:
    tokens, cost = day(bench.clock, 100), day(bench.clock, 10, 11, key="cost")
    answer = await bench.hold("a", tokens, rate(1, 1), places(1), cost)
    assert (answer.state, answer.refused) == ("refused", 3)
    assert await bench.store.levels([tokens, places(1), cost]) == [(0, 0, 0)] * 3
    assert (await bench.hold("a", tokens, rate(1, 1), places(1))).state == "held"


async def test_of_several_refusals_the_longest_counts(bench: Bench) -> None:
    spent, one = day(bench.clock, 0), rate(0.01, 1)
    assert (await bench.hold("a", one)).state == "held"
    answer = await bench.hold("b", one, spent)
    assert answer.refused == 1
    assert (await bench.hold("c", one)).refused == 0


async def test_the_same_hold_again_is_held_once(bench: Bench) -> None:
    charge = day(bench.clock, 10, 6)
    for _ in range(3):
        assert (await bench.hold("a", charge, rate(0.01, 1), places(1))).state == "held"
    assert await bench.level(charge) == (0, 6, 0)
    await bench.store.settle("a", [6, 0, 0])
    assert await bench.level(charge) == (6, 0, 0)


async def test_a_bucket_gives_its_burst_and_then_its_rate(bench: Bench) -> None:
    bucket = rate(0.1, 3)
    answers = [await bench.hold(f"a{number}", bucket) for number in range(4)]
    assert [answer.state for answer in answers] == ["held"] * 3 + ["refused"]
    assert [answer.left for answer in answers] == [(2,), (1,), (0,), (0,)]
    assert answers[3].wait_ms == 10_000
    bench.clock.move(10)
    assert (await bench.hold("b", bucket)).state == "held"
    assert (await bench.hold("c", bucket)).state == "refused"
    bench.clock.move(1000)
    assert [(await bench.hold(f"d{number}", bucket)).state for number in range(4)] == ["held"] * 3 + ["refused"]


async def test_places_are_given_back_by_settling(bench: Bench) -> None:
    assert (await bench.hold("a", places(2))).left == (1,)
    assert (await bench.hold("b", places(2))).left == (0,)
    answer = await bench.hold("c", places(2))
    assert (answer.state, answer.wait_ms) == ("refused", 1000)
    assert await bench.level(places(2)) == (0, 2, 0)
    await bench.store.settle("a", [0])
    assert (await bench.hold("c", places(2))).state == "held"


async def test_places_of_the_dead_come_back_after_their_lease_and_long_requests_keep_theirs(bench: Bench) -> None:
    for hold in ("dead", "long"):
        await bench.hold(hold, places(2))
    bench.clock.move(20)
    await bench.store.renew(["long", "unknown"], LEASE_MS)
    assert (await bench.hold("c", places(2))).state == "refused"
    bench.clock.move(11)
    assert (await bench.hold("c", places(2))).state == "held"
    assert (await bench.hold("d", places(2))).state == "refused"


async def test_what_the_dead_reserved_is_booked_in_full(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    await bench.hold("dead", charge)
    await bench.hold("done", charge)
    await bench.store.settle("done", [1])
    assert await bench.store.reconcile(LEASE_MS) == 0
    bench.clock.move(31)
    assert (await bench.hold("big", charge._replace(amount=70))).state == "refused"  # expired, and still reserved
    assert await bench.store.reconcile(LEASE_MS) == 1
    assert await bench.level(charge) == (31, 0, 0)
    assert await bench.store.reconcile(LEASE_MS) == 0
    assert await bench.level(charge) == (31, 0, 0)


async def test_an_expired_hold_still_settles_with_what_was_used(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    await bench.hold("late", charge)
    bench.clock.move(31)
    await bench.store.reconcile(LEASE_MS)
    assert await bench.store.settle("late", [5])
    assert await bench.level(charge) == (5, 0, 0)
    assert not await bench.store.settle("late", [5])


async def test_an_expired_hold_that_is_renewed_is_held_again(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    await bench.hold("paused", charge, places(1))
    bench.clock.move(31)
    await bench.store.reconcile(LEASE_MS)
    await bench.store.renew(["paused"], LEASE_MS)
    assert await bench.level(charge) == (0, 30, 0)
    assert (await bench.hold("b", places(1))).state == "refused"
    await bench.store.settle("paused", [4, 0])
    assert await bench.level(charge) == (4, 0, 0)


async def test_after_a_day_the_dead_are_forgotten(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    await bench.hold("dead", charge)
    bench.clock.move(31)
    await bench.store.reconcile(LEASE_MS)
    bench.clock.move(86_401)
    await bench.store.reconcile(LEASE_MS)
    assert not await bench.store.settle("dead", [0])
    assert await bench.level(charge) == (30, 0, 0)


async def test_what_was_used_unheld_is_booked_later(bench: Bench) -> None:
    charge = day(bench.clock, 10, 4)
    assert not await bench.store.settle("never", [15, 0], [charge, places(1)])
    assert await bench.level(charge) == (15, 0, 0)
    assert (await bench.hold("b", charge)).left == (0,)


async def test_the_stores_clock_says_which_day_it_is(bench: Bench) -> None:
    today = day(bench.clock, 10, 10)
    tomorrow = today._replace(start_ms=today.end_ms, end_ms=today.end_ms + DAY_MS)
    assert (await bench.hold("a", today)).state == "held"
    answer = await bench.hold("b", tomorrow)
    assert (answer.state, answer.now_ms) == ("other day", bench.clock.ms)
    bench.clock.move(86_400)
    assert (await bench.hold("b", today)).state == "other day"
    assert (await bench.hold("b", tomorrow)).state == "held"
    assert await bench.store.now_ms() == bench.clock.ms


async def test_a_clock_that_jumps_back_refills_nothing_and_locks_nobody_out(bench: Bench) -> None:
    today, bucket = day(bench.clock, 10, 10), rate(0.1, 2)
    await bench.hold("a", today, bucket)
    await bench.hold("b", bucket)
    await bench.hold("place", places(1))
    bench.clock.move(-3600)
    assert (await bench.hold("c", today)).state == "refused"
    answer = await bench.hold("d", bucket)
    assert answer.state == "refused" and answer.wait_ms <= 10_000
    bench.clock.move(10)
    assert (await bench.hold("e", bucket)).state == "refused"  # it was clamped when nobody could take from it
    assert (await bench.hold("f", places(1))).state == "refused"
    await bench.store.reconcile(LEASE_MS)
    bench.clock.move(61)
    assert (await bench.hold("g", places(1))).state == "held"
    assert await bench.store.reconcile(LEASE_MS) == 3


async def test_a_clock_that_went_to_another_day_and_back_finds_the_counts_as_they_were(bench: Bench) -> None:
    today = day(bench.clock, 10, 7)
    await bench.hold("a", today)
    await bench.store.settle("a", [7])
    bench.clock.move(3 * 86_400)
    await bench.store.reconcile(LEASE_MS)
    bench.clock.move(-3 * 86_400)
    assert await bench.level(today) == (7, 0, 0)


async def test_grants_and_resets_are_counted_and_recorded(bench: Bench) -> None:
    charge = day(bench.clock, 10, 10)
    await bench.hold("a", charge)
    await bench.store.settle("a", [10])
    change = BudgetChange(
        at=utc_now(), actor='o"ps "amount":0', action="grant", key=charge.key, amount=5, reason='Ünïcode, "amount":0'
    )
    await bench.store.grant(charge, change)
    answer = await bench.hold("b", charge._replace(amount=5))
    assert (answer.state, answer.left) == ("held", (0,))
    reset = change.model_copy(update={"action": "reset", "amount": 0})
    assert await bench.store.reset(charge, reset) == 10
    assert await bench.level(charge) == (0, 5, 5)
    assert list(await bench.store.changes()) == [change, reset.model_copy(update={"amount": 10})]
    assert await bench.store.keys(charge.start_ms) == [charge.key]
    assert await bench.store.keys(charge.end_ms) == []


async def test_a_reset_never_makes_a_count_negative(bench: Bench) -> None:
    charge = day(bench.clock, 100, 30)
    await bench.hold("late", charge)
    bench.clock.move(31)
    await bench.store.reconcile(LEASE_MS)
    change = BudgetChange(at=utc_now(), actor="ops", action="reset", key=charge.key, amount=0, reason="test")
    await bench.store.reset(charge, change)
    await bench.store.settle("late", [5])
    assert await bench.level(charge) == (0, 0, 0)


async def test_amounts_stay_exact_where_floats_would_not_print_them(bench: Bench) -> None:
    charge = day(bench.clock, HUGE, 99_999_999_999_999)
    answer = await bench.hold("a", charge)
    assert answer.left == (1,)
    await bench.store.settle("a", [99_999_999_999_998])
    assert await bench.level(charge) == (99_999_999_999_998, 0, 0)


async def test_keys_may_hold_anything(bench: Bench) -> None:
    charge = day(bench.clock, 1, key="user|süpport|a:b{c}*?[d] e|tokens")
    await bench.hold("a 'b", charge)
    assert await bench.store.keys(charge.start_ms) == [charge.key]
    assert (await bench.hold("c", charge._replace(key=charge.key + "2"))).state == "held"


async def test_two_hundred_clients_of_two_gateways_never_get_one_unit_too_much(bench: Bench) -> None:
    stores = [bench.store, bench.open()]
    charge, seats = day(bench.clock, 101, 3), places(7)
    most = busy = 0

    async def client(number: int) -> int:
        nonlocal busy, most
        store, got = stores[number % 2], 0
        for attempt in itertools.count():
            hold = f"{number}-{attempt}"
            answer = await store.hold(hold, [charge, seats], LEASE_MS)
            if answer.refused == 0:
                return got
            if answer.state == "held":
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(0)
                busy -= 1
                used = (number + attempt) % 4 or 1
                got += used
                await store.settle(hold, [used, 0])
        raise AssertionError

    used = sum(await asyncio.gather(*(client(number) for number in range(200))))
    level = await bench.level(charge)
    assert level == (used, 0, 0)
    assert 81 <= used <= 101 and most <= 7  # up to seven were reserved with 3 each when the last was refused
    assert await bench.level(seats) == (0, 0, 0)


async def test_a_missing_redis_is_transient_and_names_the_place(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    settings = Settings(budgets=BudgetSettings(uri=f"redis://user:hunter2@127.0.0.1:{closed}/0"))
    store = open_budget_store(settings)
    with pytest.raises(TransientBackendError, match="does not answer") as caught:
        await store.hold("a", [places(1)], LEASE_MS)
    assert f"127.0.0.1:{closed}" in str(caught.value) and "hunter2" not in str(caught.value)
    await store.close()


async def test_a_redis_that_hangs_fails_all_that_wait_for_it_together() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        store = RedisBudgetStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", timeout_s=0.1)
        holds = (store.hold(f"h{number}", [places(1)], LEASE_MS) for number in range(500))
        errors = await asyncio.gather(*holds, return_exceptions=True)
        assert {type(error) for error in errors} == {TransientBackendError}
        assert len({id(error) for error in errors}) == 1  # one time-out for all
        await store.close()


async def test_a_damaged_file_and_an_impossible_place_are_told_apart(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database, however long it may be" * 100)
    (tmp_path / "file").touch()
    for path, kind in ((damaged, IntegrityError), (tmp_path / "file" / "budgets.db", PermanentBackendError)):
        store = SqliteBudgetStore(path)
        with pytest.raises(kind):
            await store.hold("a", [places(1)], LEASE_MS)
        await store.close()


@pytest.mark.parametrize("uri", ["ftp://host/budgets", "redis://host:port"])
def test_a_wrong_uri_names_the_remedy(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://"):
        open_budget_store(Settings(budgets=BudgetSettings(uri=uri)))
