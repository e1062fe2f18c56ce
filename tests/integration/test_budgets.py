"""Two real gateways and one budget: under load, across fallbacks, when a gateway or the store is killed."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import yaml

from governance.budgets.days import Days
from governance.budgets.opening import open_budget_store
from governance.budgets.port import Charge, Level
from leitstand.settings import BudgetSettings, Settings
from leitstand.types import Target
from tests.gateway_processes import Gateway, Upstream, gateway_running, until
from tests.servers import RedisServer, free_ports, redis_running

LEASE_S = "1"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(1, free_ports(1)[0], tmp_path_factory.mktemp("upstream"))
    made.start()
    yield made
    made.kill()


@contextmanager
def gateways(
    folder: Path, project: Path, uri: str, upstream: Upstream, budgets: dict[str, Any], count: int = 2, **routes: Any
) -> Iterator[list[Gateway]]:
    document = yaml.safe_load((project / "usecases" / "support" / "usecase.yaml").read_text())
    (folder / "usecases" / "support").mkdir(parents=True)
    (folder / "usecases" / "support" / "usecase.yaml").write_text(yaml.safe_dump(document | {"budgets": budgets}))
    settings = {
        "LEITSTAND_BUDGETS__URI": uri, "LEITSTAND_BUDGETS__LEASE_S": LEASE_S,
        "LEITSTAND_USECASES": str(folder / "usecases"),
    }  # fmt: skip
    with ExitStack() as stack:
        made = [stack.enter_context(gateway_running(folder / f"home-{n}", **settings)) for n in range(count)]
        for gateway in made:
            gateway.route(upstream, **routes)
        yield made


@pytest.fixture(params=["sqlite", "redis"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "budgets.db")
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.database()


def level(uri: str, key: str, kind: Any = "d") -> Level:
    """What the store says of today's count."""

    async def ask() -> Level:
        store = open_budget_store(Settings(budgets=BudgetSettings(uri=uri)))
        try:
            start, end = Days("UTC").span(int(datetime.now(UTC).timestamp() * 1000))
            (found,) = await store.levels([Charge(kind, key, 0, 0, start, end)])
        finally:
            await store.close()
        return found

    return asyncio.run(ask())


def in_background(ask: Callable[[], httpx.Response]) -> "tuple[threading.Thread, list[httpx.Response | Exception]]":
    seen: list[httpx.Response | Exception] = []

    def run() -> None:
        try:
            seen.append(ask())
        except httpx.HTTPError as error:
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


def test_two_hundred_clients_share_a_small_budget_to_the_last_unit(
    tmp_path: Path, project: Path, uri: str, upstream: Upstream
) -> None:
    """Half of the requests go to a canary that is dead, so that stable answers them: still one request each."""
    tokens, requests = "use_case|support||tokens_per_day", "tenant|support|default|requests_per_day"
    budgets = {"tenant": {"requests_per_day": 137}, "use_case": {"tokens_per_day": 6 * 150}}
    (closed,) = free_ports(1)
    dead = Target(version=2, url=f"http://127.0.0.1:{closed}")
    with gateways(
        tmp_path, project, uri, upstream, budgets, canary=dead, canary_percent=50.0
    ) as both, ThreadPoolExecutor(1) as pool:  # fmt: skip

        async def clients() -> list[tuple[int, str, str]]:
            async def client(session: aiohttp.ClientSession, number: int) -> list[tuple[int, str, str]]:
                seen = []
                url = f"{both[number % 2].url}/v1/support/predict"
                for count in range(2):
                    async with session.post(url, json={"text": "a lost card", "subject": f"{number}-{count}"}) as said:
                        await said.read()
                        headers = said.headers
                        seen.append((said.status, headers.get("retry-after", ""), headers.get("ratelimit", "")))
                return seen

            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                return list(chain(*await asyncio.gather(*(client(session, number) for number in range(200)))))

        seen = pool.submit(asyncio.run, clients()).result(120)
        statuses = Counter(status for status, _, _ in seen)
        assert statuses == {200: 137, 429: 263}
        assert all(0 < int(retry) <= 86_400 and ";r=0;" in left for status, retry, left in seen if status == 429)
        assert sum(gateway.metric("gateway_fallbacks_total") for gateway in both) > 30
        for gateway in both:
            assert gateway.metric("gateway_budget_reservations_total", outcome="held") > 0
            gateway.process.terminate()  # what it answered is booked before it ends
        assert [gateway.process.wait(30) for gateway in both] == [0, 0]
        assert (level(uri, requests), level(uri, tokens)) == ((137, 0, 0), (6 * 137, 0, 0))


def test_a_killed_gateways_reservations_are_booked_and_its_places_come_back(
    tmp_path: Path, project: Path, uri: str, upstream: Upstream
) -> None:
    budgets = {"tenant": {"requests_per_day": 100, "concurrent": 1}}
    key = "tenant|support|default|requests_per_day"
    with gateways(tmp_path, project, uri, upstream, budgets) as (one, other):
        thread, seen = in_background(lambda: one.predict("slow"))  # for two seconds: twice its lease
        until(lambda: level(uri, key).reserved == 1, "the reservation")
        statuses = []
        while 200 not in statuses:
            statuses.append(other.predict("a").status_code)
        assert set(statuses) == {429, 200}
        thread.join()
        # Its lease would have ended twice by now: it was renewed, and not booked as a dead one's.
        assert [each.metric("gateway_budget_expired_total") for each in (one, other)] == [0, 0]
        assert [said.status_code for said in seen if isinstance(said, httpx.Response)] == [200]
        until(lambda: level(uri, key) == (2, 0, 0), "both to be booked")
        thread, seen = in_background(lambda: one.predict("slow"))
        until(lambda: level(uri, key).reserved == 1, "the reservation")
        one.process.kill()
        thread.join()
        assert isinstance(seen[0], httpx.TransportError)
        assert other.predict("a").status_code == 429
        until(lambda: other.predict("a").status_code == 200, "the dead gateway's place")
        until(lambda: level(uri, key) == (4, 0, 0), "the dead gateway's reservation to be booked")
        assert other.metric("gateway_budget_expired_total") == 1


@pytest.mark.parametrize("policy", ["refuse", "admit"])
def test_redis_is_killed_and_comes_back_and_no_count_is_lost(
    tmp_path: Path, project: Path, upstream: Upstream, policy: str
) -> None:
    (port,) = free_ports(1)
    uri, folder = f"redis://127.0.0.1:{port}/0", tmp_path / "redis"
    folder.mkdir()
    key = "tenant|support|default|requests_per_day"
    budgets = {"when_unavailable": policy, "tenant": {"requests_per_day": 10}}
    with ExitStack() as stack:
        redis = stack.enter_context(ExitStack())
        redis.enter_context(redis_running(folder, port))
        (gateway,) = stack.enter_context(gateways(tmp_path, project, uri, upstream, budgets, count=1))
        assert [gateway.predict("a").status_code for _ in range(3)] == [200] * 3
        thread, seen = in_background(lambda: gateway.predict("slow"))
        until(lambda: level(uri, key).reserved == 1, "the reservation")
        redis.close()
        response = gateway.predict("a")
        if policy == "refuse":
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "Limits cannot be checked" in response.json()["detail"] and str(port) not in response.text
        else:
            assert response.status_code == 200
        thread.join()
        assert isinstance(seen[0], httpx.Response) and seen[0].status_code == 200
        assert gateway.metric("gateway_budget_store_up") == 0
        until(lambda: gateway.metric("gateway_budget_unsettled") == 2, "the bookings that wait")
        redis.enter_context(redis_running(folder, port))
        expected = 4 if policy == "refuse" else 5
        until(lambda: level(uri, key) == (expected, 0, 0), "the counts to be complete")
        until(lambda: gateway.metric("gateway_budget_store_up") == 1, "the gateway to say so")
        assert gateway.predict("a").headers["ratelimit"].startswith(f'"tenant-requests-per-day";r={9 - expected};')
