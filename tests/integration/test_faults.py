"""A real gateway between upstreams that misbehave and clients that dawdle: every request is answered, exactly once."""

import asyncio
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from leitstand.types import Target
from tests.gateway_processes import Gateway, Upstream, answers, gateway_running, until
from tests.servers import free_ports, running, wait_until

DEADLINE_S = 1.0
LATEST_S = 5.0  # a hanging upstream holds a call for a minute; a busy machine holds an answer for a moment
PATH = "/v1/support/predict"


class Faulty(Upstream):
    """`tests.faulty_upstream`, whose mode a test sets."""

    def start(self) -> None:
        log = self.folder / f"faulty-{self.version}.log"
        command = [sys.executable, "-m", "tests.faulty_upstream", str(self.version), str(self.port)]
        process = self.stack.enter_context(running(command, log))
        wait_until(lambda: answers(f"{self.target.url}/count"), process, log, "the faulty upstream")

    def meet(self, mode: str) -> None:
        """How requests are met from now on."""
        assert httpx.put(f"{self.target.url}/mode/{mode}").status_code == 200

    def count(self) -> int:
        return httpx.get(f"{self.target.url}/count").json()["count"]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    upstream = Faulty(1, free_ports(1)[0], tmp_path_factory.mktemp("faulty"))
    upstream.start()
    yield upstream
    upstream.kill()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    upstream = Upstream(9, free_ports(1)[0], tmp_path_factory.mktemp("small"))
    upstream.start()
    yield upstream
    upstream.kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = {"LEITSTAND_GATEWAY__DEADLINE_S": str(DEADLINE_S), "LEITSTAND_GATEWAY__CLIENT_S": "1"}
    with gateway_running(tmp_path_factory.mktemp("gateway"), **limits) as started:
        yield started


def routed(gateway: Gateway, faulty: Faulty, version: int, **changes: Any) -> Target:
    """The faulty upstream as stable, under a version whose breaker knows nothing yet."""
    faulty.meet("well")
    target = Target(version=version, url=faulty.target.url)
    renamed = Faulty(version, faulty.port, faulty.folder)
    gateway.route(renamed, **changes)
    return target


async def ask(gateway: Gateway, count: int, clients: int = 10, **headers: str) -> list[dict[str, Any]]:
    """What each of `count` requests was answered, and how long it took."""
    seen: list[dict[str, Any]] = []
    numbers = iter(range(count))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            start = time.monotonic()
            named = {"x-request-id": f"request-{number}", **headers}
            async with session.post(f"{gateway.url}{PATH}", json={"text": "a card"}, headers=named) as got:
                await got.read()
                seen.append(
                    {
                        "status": got.status, "id": got.headers["x-request-id"], "s": time.monotonic() - start,
                        "route": got.headers.get("x-leitstand-route", ""),
                        "fallback": got.headers.get("x-leitstand-fallback", ""),
                    }
                )  # fmt: skip

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    assert sorted(each["id"] for each in seen) == sorted(f"request-{number}" for number in range(count))
    return seen


async def recovers(gateway: Gateway, faulty: Faulty) -> None:
    faulty.meet("well")
    deadline = time.monotonic() + 20
    while {each["route"] for each in await ask(gateway, 10)} != {"stable"}:
        assert time.monotonic() < deadline, "stable is not used again"
        await asyncio.sleep(0.05)


MODES = {
    "hang": "timeout", "drip": "timeout", "half-close": "disconnected", "reset": "disconnected", "cut": "disconnected",
    "garbage": "garbled", "nonsense": "garbled", "endless": "garbled", "500": "error", "503": "busy",
}  # fmt: skip


@pytest.mark.parametrize(("number", "mode"), list(enumerate(MODES)))
async def test_whatever_stable_does_the_fallback_answers_everybody_in_time_and_stable_comes_back(
    gateway: Gateway, faulty: Faulty, small: Upstream, number: int, mode: str
) -> None:
    routed(gateway, faulty, 100 + number, fallback=small.target)
    faulty.meet(mode)
    seen = await ask(gateway, 100)
    assert {each["status"] for each in seen} == {200}
    assert {each["route"] for each in seen} == {"fallback"}
    reasons = Counter(each["fallback"] for each in seen)
    assert set(reasons) <= {MODES[mode], "open", "timeout"} and reasons[MODES[mode]] >= 1
    assert reasons["open"] >= 60, "most were not asked of an upstream that fails"
    assert 5 <= faulty.count() <= 40, "neither calls nor retries pile up on it"
    assert max(each["s"] for each in seen) < LATEST_S
    await recovers(gateway, faulty)


STATUS = {"hang": 504, "drip": 504, "garbage": 502, "nonsense": 502, "500": 502}


@pytest.mark.parametrize(("number", "mode"), list(enumerate(MODES)))
async def test_without_a_fallback_each_request_is_a_problem_within_its_deadline(
    gateway: Gateway, faulty: Faulty, number: int, mode: str
) -> None:
    routed(gateway, faulty, 200 + number)
    faulty.meet(mode)
    seen = await ask(gateway, 30)
    statuses = Counter(each["status"] for each in seen)
    allowed = {STATUS.get(mode, 503), 503} | ({502, 504} if mode == "endless" else set())
    assert set(statuses) <= allowed and statuses[503] >= 5, "failing fast is a 503"
    assert max(each["s"] for each in seen) < LATEST_S
    state = gateway.ready()["breakers"]["support"]
    assert state[str(200 + number)] in ("open", "half-open")
    await recovers(gateway, faulty)


async def test_connections_that_break_now_and_then_cost_nobody_an_answer(gateway: Gateway, faulty: Faulty) -> None:
    routed(gateway, faulty, 300)
    await ask(gateway, 100)
    faulty.meet("flaky")
    seen = await ask(gateway, 40, clients=1)
    assert {each["status"] for each in seen} == {200}
    assert gateway.metric("gateway_retries_total", version="300", outcome="made") >= 5


async def test_sigterm_while_stable_hangs_lets_the_fallback_answer_everybody_first(
    faulty: Faulty, small: Upstream, tmp_path: Path
) -> None:
    with gateway_running(tmp_path, LEITSTAND_GATEWAY__DEADLINE_S=str(2 * DEADLINE_S)) as ending:
        routed(ending, faulty, 304, fallback=small.target)
        faulty.meet("hang")
        asked = asyncio.create_task(ask(ending, 4, clients=4))
        while ending.metric("gateway_upstream_in_flight", version="304") < 4:
            await asyncio.sleep(0.02)
        ending.process.send_signal(signal.SIGTERM)
        assert {(each["status"], each["fallback"]) for each in await asked} == {(200, "timeout")}
        assert await asyncio.to_thread(ending.process.wait, 30) == 0


def test_a_callers_deadline_ends_the_wait_and_harms_no_breaker(gateway: Gateway, faulty: Faulty) -> None:
    routed(gateway, faulty, 301)
    faulty.meet("hang")
    for _ in range(7):
        assert gateway.predict("a", **{"x-deadline-ms": "100"}).status_code == 504
    assert gateway.ready()["breakers"]["support"]["301"] == "closed"
    assert gateway.metric("gateway_short_deadlines_total", version="301") == 7
    assert gateway.predict("a", **{"x-deadline-ms": "0"}).status_code == 504
    assert gateway.predict("a", **{"x-deadline-ms": "soon"}).status_code == 400
    assert gateway.predict("a", **{"x-priority": "urgent"}).status_code == 400


def connected(gateway: Gateway, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=15)
    connection.sendall(sent)
    return connection


HEAD = b"POST /v1/support/predict HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("begun", "more", "status"),
    [
        (b"", b"", b""), (b"\r\n", b"\r\n", b""), (b"POST /v1/sup", b"p", b"408"), (HEAD, b"x-a: b\r\n", b"408"),
        (HEAD + b"content-length: 500\r\n\r\n{", b" ", b"408"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n", b"408"),
    ],
)  # fmt: skip
def test_requests_that_never_come_to_their_end_are_ended(
    gateway: Gateway, faulty: Faulty, begun: bytes, more: bytes, status: bytes
) -> None:
    """Fifty at a time, each sending a little more now and then; others are served meanwhile."""
    routed(gateway, faulty, 302)
    slow = [connected(gateway, begun) for _ in range(50)]
    deadline = time.monotonic() + 10
    said: dict[socket.socket, bytes] = {}
    while len(said) < len(slow):
        assert time.monotonic() < deadline, f"{len(slow) - len(said)} connections are still held"
        for connection in slow:
            if connection in said:
                continue
            with suppress(OSError):
                if more:
                    connection.sendall(more)
            connection.settimeout(0.001)
            try:
                said[connection] = connection.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                said[connection] = status
        assert gateway.predict("a").status_code == 200
    assert all(status in answer for answer in said.values())
    for connection in slow:
        connection.close()
    until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "no place to be held")


def test_a_client_that_does_not_take_its_answers_is_let_go(gateway: Gateway) -> None:
    before = gateway.metric("gateway_slow_clients_total", what="answer")
    port = int(gateway.url.rsplit(":", 1)[1])
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: g\r\n\r\n" * 200)
        until(lambda: gateway.metric("gateway_slow_clients_total", what="answer") == before + 1, "it to be let go")


def test_header_lines_without_an_end_are_refused(gateway: Gateway) -> None:
    with connected(gateway, HEAD) as connection:
        with suppress(OSError):
            for number in range(2000):
                connection.sendall(b"x-%d: %s\r\n" % (number, b"a" * 200))
        got = b""
        with suppress(ConnectionError):
            got = connection.recv(1000)
    assert b"431" in got or not got


def test_slow_but_steady_clients_within_the_bound_are_served(gateway: Gateway, faulty: Faulty) -> None:
    routed(gateway, faulty, 303)
    body = b'{"text": "a card"}'
    with connected(gateway, HEAD + b"content-length: %d\r\n\r\n" % len(body)) as connection:
        for place in range(len(body)):
            connection.sendall(body[place : place + 1])
            time.sleep(0.02)
        assert b" 200 " in connection.recv(10_000)
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in connection.recv(10_000), "the connection is still good"
