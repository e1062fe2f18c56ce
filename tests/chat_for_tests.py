"""A real gateway process in front of OpenAI-compatible APIs."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from governance.routes.opening import open_route_store
from leitstand.ports import RouteStore
from leitstand.settings import Settings
from leitstand.types import RouteTable, Target, utc_now
from tests.servers import free_ports, running, wait_until

KEY = "sk-only-for-tests"
DEADLINE_S = 30


@dataclass
class ChatUpstream:
    """A running `tests.tiny_chat_upstream`."""

    port: int
    folder: Path
    version: int = 1

    @property
    def target(self) -> Target:
        return Target(
            version=self.version, url=f"http://127.0.0.1:{self.port}/v1", kind="openai", model="tiny-1", key="tiny"
        )

    def seen(self) -> dict[str, Any]:
        return httpx.get(f"http://127.0.0.1:{self.port}/seen").json()


@dataclass
class ChatGateway:
    """A running gateway."""

    url: str
    store: RouteStore
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def route(self, use_case: str, stable: Target, **changes: Any) -> RouteTable:
        """Writes the table, and returns when the gateway uses it."""
        before = self.store.read(use_case)
        fresh = RouteTable(use_case=use_case, stable=stable, changed_at=utc_now(), actor="test", reason="test")
        table = self.store.write(fresh.model_copy(update=changes), expected=before.revision if before else 0)
        until(lambda: self.revision(use_case) == table.revision, "the gateway to see its routes")
        return table

    def revision(self, use_case: str) -> int:
        return httpx.get(f"{self.url}/readyz").json().get("routes", {}).get(use_case, 0)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "helper", "messages": [{"role": "user", "content": text}]} | fields
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=30)

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def until(ready: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.02)


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


@contextmanager
def chat_upstream(folder: Path, version: int = 1, key: str = KEY) -> Iterator[ChatUpstream]:
    (port,) = free_ports(1)
    log = folder / f"chat-upstream-{version}-{port}.log"
    with running([sys.executable, "-m", "tests.tiny_chat_upstream", str(port), key], log) as process:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/seen"), process, log, "the API")
        yield ChatUpstream(port, folder, version)


def write_use_case(home: Path, name: str, **keys: Any) -> None:
    """The file of a use case with other `keys`; its breaker never opens unless they say so."""
    project = Path(__file__).parent.parent
    document = yaml.safe_load((project / "usecases/support/usecase.yaml").read_text())
    for unused in ("access", "budgets", "guards", "audit", "resilience", "chat"):
        document.pop(unused, None)
    folder = home / "usecases" / name
    folder.mkdir(parents=True)
    document |= {"name": name, "resilience": {"breaker": {"enabled": False}}} | keys
    (folder / "usecase.yaml").write_text(yaml.safe_dump(document))


@contextmanager
def chat_gateway(home: Path, key_url: str, **settings: str) -> Iterator[ChatGateway]:
    """A gateway whose key `tiny` belongs to `key_url`."""
    (port,) = free_ports(1)
    environment = {
        "LEITSTAND_HOME": str(home), "LEITSTAND_GATEWAY__PORT": str(port), "LEITSTAND_MONITORING__FLUSH_S": "0.2",
        "LEITSTAND_USECASES": str(home / "usecases"), "LEITSTAND_CHAT__KEYS__TINY__VALUE": KEY,
        "LEITSTAND_CHAT__KEYS__TINY__URL": key_url, "LEITSTAND_CHAT__IDLE_S": "1",
    } | settings  # fmt: skip
    if not (home / "usecases").exists():
        write_use_case(home, "helper")
    log = home / "gateway.log"
    store = open_route_store(Settings(home=home))
    with running([sys.executable, "-m", "leitstand.cli", "gateway"], log, env=os.environ | environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/readyz"), process, log, "the gateway")
        yield ChatGateway(url, store, home, environment)
