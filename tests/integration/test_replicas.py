"""Two gateways that share nothing but a route store, one with a clock an hour ahead, keep what one gateway promises."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from governance.routes.opening import open_route_store
from leitstand.ports import RouteStore
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, utc_now
from tests.gateway_processes import Gateway, Upstream, gateway_running, until, waited
from tests.servers import free_ports, redis_running

PROMISE_S = 1.0
AHEAD = "import time\nnow, now_ns = time.time, time.time_ns\ntime.time = lambda: now() + 3600\n"
AHEAD += "time.time_ns = lambda: now_ns() + 3600 * 10**9\n"
SUBJECTS = [f"subject-{number}" for number in range(40)]


@dataclass
class Answer:
    sent: float
    gateway: int
    subject: str
    status: int
    version: str


@dataclass
class Load:
    """Clients that ask both gateways in turn; one that closes its connections is left for the other."""

    answers: list[Answer] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    over: bool = False

    def since(self, sent: float) -> list[Answer]:
        """What was answered to requests that were sent later."""
        return [each for each in self.answers if each.sent > sent]


@asynccontextmanager
async def load(gateways: list[Gateway], clients: int = 6) -> AsyncIterator[Load]:
    kept = Load()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while not kept.over:
            turn += 1
            place = turn % 2 if turn % 2 not in kept.left else 1 - turn % 2
            subject, sent = SUBJECTS[(turn // 2) % len(SUBJECTS)], time.monotonic()
            body = {"text": "a card", "subject": subject}
            async with session.post(f"{gateways[place].url}/v1/support/predict", json=body) as got:
                await got.read()
                kept.answers.append(
                    Answer(sent, place, subject, got.status, got.headers.get("x-leitstand-version", ""))
                )
                if got.headers.get("connection") == "close":
                    kept.left.add(place)

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(client(session, number * 7)) for number in range(clients)]
        try:
            yield kept
        finally:
            kept.over = True
            await asyncio.gather(*tasks)


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Upstream]]:
    folder = tmp_path_factory.mktemp("upstreams")
    made = [Upstream(version, port, folder) for version, port in enumerate(free_ports(2), start=1)]
    for upstream in made:
        upstream.start()
    yield made
    for upstream in made:
        upstream.kill()


@contextmanager
def replicas(folder: Path, uri: str) -> Iterator[list[Gateway]]:
    (folder / "ahead").mkdir()
    (folder / "ahead" / "sitecustomize.py").write_text(AHEAD)
    path = os.pathsep.join(filter(None, (str(folder / "ahead"), os.environ.get("PYTHONPATH"))))
    with gateway_running(folder / "a", uri) as first, gateway_running(folder / "b", uri, PYTHONPATH=path) as second:
        yield [first, second]


@pytest.fixture(params=["redis", "postgres"])
def uri(request: pytest.FixtureRequest) -> str:
    server = "redis_server" if request.param == "redis" else "empty_postgres"
    return request.getfixturevalue(server).database()


def change(store: RouteStore, stable: Upstream, **changes: Any) -> float:
    """Writes the table; the time at which it was stored."""
    before = store.read("support")
    fresh = RouteTable(use_case="support", stable=stable.target, changed_at=utc_now(), actor="test", reason="test")
    store.write(fresh.model_copy(update=changes), expected=before.revision if before else 0)
    return time.monotonic()


async def more(kept: Load, count: int = 150) -> None:
    """Returns when so many more requests were answered by gateways that had time to see a change."""
    after = time.monotonic() + PROMISE_S
    await waited(lambda: len(kept.since(after)) >= count, "answers")


async def test_a_switch_reaches_both_within_a_second_nobody_is_dropped_and_subjects_stay(
    uri: str, upstreams: list[Upstream], tmp_path: Path
) -> None:
    one, two = upstreams
    store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
    change(store, one)
    with replicas(tmp_path, uri) as gateways:
        for gateway in gateways:
            until(lambda it=gateway: it.ready()["routes"] == {"support": 1}, "the routes")
        async with load(gateways) as kept:
            shared = await asyncio.to_thread(change, store, one, canary=two.target, canary_percent=50.0)
            await more(kept)
            switched = await asyncio.to_thread(change, store, two)
            await more(kept)
            gateways[0].process.send_signal(signal.SIGTERM)
            await waited(lambda: 0 in kept.left, "the first gateway to send its clients away")
            await more(kept)
        assert await asyncio.to_thread(gateways[0].process.wait, 30) == 0
    store.close()  # type: ignore[attr-defined]
    assert {each.status for each in kept.answers} == {200}
    late = [each.sent - switched for each in kept.answers if each.version == "1" and each.sent > switched]
    assert max(late, default=0) < PROMISE_S
    steady = [each for each in kept.since(shared + PROMISE_S) if each.sent < switched]
    met: dict[str, set[str]] = defaultdict(set)
    for each in steady:
        met[each.subject].add(each.version)
    assert {each.gateway for each in steady} == {0, 1}
    assert all(len(versions) == 1 for versions in met.values()), "a subject met both versions"
    assert {version for versions in met.values() for version in versions} == {"1", "2"}


async def test_redis_killed_under_load_costs_nobody_an_answer_and_both_follow_when_it_is_back(
    upstreams: list[Upstream], tmp_path: Path
) -> None:
    one, two = upstreams
    (port,) = free_ports(1)
    (tmp_path / "redis").mkdir()
    uri = f"redis://127.0.0.1:{port}/0"
    with ExitStack() as stack:
        redis = stack.enter_context(ExitStack())
        redis.enter_context(redis_running(tmp_path / "redis", port))
        store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
        change(store, one)
        gateways = stack.enter_context(replicas(tmp_path, uri))
        async with load(gateways) as kept:
            await more(kept)
            await asyncio.to_thread(redis.close)
            await waited(all_say(gateways, lambda said: said != "ok"), "both to notice")
            await more(kept)
            await asyncio.to_thread(lambda: redis.enter_context(redis_running(tmp_path / "redis", port)))
            await waited(all_say(gateways, lambda said: said == "ok"), "both to be back")
            switched = await asyncio.to_thread(change, store, two)
            await more(kept)
        store.close()  # type: ignore[attr-defined]
    assert {each.status for each in kept.answers} == {200}
    assert {each.version for each in kept.since(switched + PROMISE_S)} == {"2"}
    assert {each.version for each in kept.answers if each.sent < switched - PROMISE_S} == {"1"}


def all_say(gateways: list[Gateway], said: Callable[[str], bool]) -> Callable[[], bool]:
    return lambda: all(said(gateway.ready()["route_store"]) for gateway in gateways)
