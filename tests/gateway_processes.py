"""Gateways and model servers as real processes, and clients that ask them while something happens."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

from governance.routes.opening import open_route_store
from leitstand.ports import RouteStore
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, Target, utc_now
from tests.servers import free_ports, running, wait_until

DEADLINE_S = 30
Answers = list[tuple[int, str, str]]


@dataclass
class Upstream:
    """`tests.tiny_upstream` of one version."""

    version: int
    port: int
    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def target(self) -> Target:
        return Target(version=self.version, url=f"http://127.0.0.1:{self.port}")

    def start(self) -> None:
        log = self.folder / f"upstream-{self.version}.log"
        command = [sys.executable, "-m", "tests.tiny_upstream", str(self.version), str(self.port)]
        process = self.stack.enter_context(running(command, log))
        wait_until(lambda: answers(f"{self.target.url}/v2"), process, log, f"upstream {self.version}")

    def kill(self) -> None:
        self.stack.close()


@dataclass
class Gateway:
    """A running gateway and the store of its routes."""

    url: str
    store: RouteStore
    home: Path
    process: "subprocess.Popen[bytes]"

    def route(self, stable: Upstream, **changes: Any) -> RouteTable:
        """Writes the table, and returns when the gateway uses it."""
        before = self.store.read("support")
        fresh = RouteTable(use_case="support", stable=stable.target, changed_at=utc_now(), actor="test", reason="test")
        table = self.store.write(fresh.model_copy(update=changes), expected=before.revision if before else 0)
        until(lambda: self.ready().get("routes", {}).get("support") == table.revision, "the gateway to see its routes")
        return table

    def ready(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/readyz").json()

    def predict(self, *texts: str, use_case: str = "support", **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{use_case}/predict", json={"texts": texts}, headers=headers, timeout=30)

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


def until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.02)


@contextmanager
def gateway_running(home: Path, routes_uri: str = "", **settings: str) -> Iterator[Gateway]:
    (port,) = free_ports(1)
    environment = os.environ | {
        "LEITSTAND_HOME": str(home), "LEITSTAND_GATEWAY__PORT": str(port), "LEITSTAND_GATEWAY__ROUTES_URI": routes_uri,
        "LEITSTAND_MONITORING__FLUSH_S": "0.2", "LEITSTAND_USECASES": str(home / "usecases"),
    } | settings  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    log = home / "gateway.log"
    store = open_route_store(Settings(home=home, gateway=GatewaySettings(routes_uri=routes_uri)))
    with running([sys.executable, "-m", "leitstand.cli", "gateway"], log, env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/readyz"), process, log, "the gateway")
        yield Gateway(url, store, home, process)


async def load(gateway: Gateway, meanwhile: Awaitable[None], clients: int = 8) -> Answers:
    """Status, version and route of everything that clients were answered until `meanwhile` is over."""
    seen: Answers = []
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            body = {"text": "a card", "subject": f"{number}-{count}"}
            async with session.post(f"{gateway.url}/v1/support/predict", json=body) as response:
                await response.read()
                headers = response.headers
                route = headers.get("x-leitstand-route", "")
                seen.append((response.status, headers.get("x-leitstand-version", ""), route))

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(client(session, number)) for number in range(clients)]
        try:
            await meanwhile
        finally:
            over.set()
            await asyncio.gather(*tasks)
    return seen


async def waited(ready: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, ready, what)
