"""The audit trail behind a real gateway process: killed, without room, pruned, erased, explained, replayed."""

import asyncio
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from typer.testing import CliRunner

from flows.serving_once import served_once
from governance.audit.keys import Scope, open_keys
from governance.audit.reading import Reader
from governance.audit.verify_standalone import segments
from leitstand.commands import replay
from leitstand.errors import NotFoundError, PolicyDenied
from leitstand.settings import Settings
from leitstand.types import Target, utc_now
from models.packaging import BentoRecord
from tests.audit_for_tests import only_chain, verify
from tests.integration.test_gateway import Gateway, Upstream, gateway_running, until
from tests.servers import free_ports


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    (port,) = free_ports(1)
    made = Upstream(1, port, tmp_path_factory.mktemp("upstream"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def gateway(tmp_path: Path, upstream: Upstream) -> Iterator[Gateway]:
    with gateway_running(tmp_path / "home") as running:
        running.route(upstream)
        yield running


def trail(gateway: Gateway) -> Path:
    return gateway.home / "audit"


def stop(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(30)


async def answered_ids(gateway: Gateway, meanwhile: Any, clients: int = 16) -> list[str]:
    """Ids of requests that were answered 200 until `meanwhile` is over."""
    seen: list[str] = []
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            body = {"text": "a card", "subject": f"s-{number}"}
            headers = {"x-request-id": f"c{number}-{count}"}
            try:
                async with session.post(f"{gateway.url}/v1/support/predict", json=body, headers=headers) as response:
                    await response.read()
                    if response.status == 200:
                        seen.append(f"c{number}-{count}")
            except aiohttp.ClientError:
                return

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(client(session, number)) for number in range(clients)]
        try:
            await meanwhile(seen)
        finally:
            over.set()
            await asyncio.gather(*tasks)
    return seen


async def test_every_answer_before_a_kill_has_its_record(gateway: Gateway, upstream: Upstream) -> None:
    async def kill(seen: list[str]) -> None:
        deadline = time.monotonic() + 30
        while len(seen) < 300 and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        gateway.process.kill()

    answered = await answered_ids(gateway, kill)
    assert len(answered) >= 300
    with gateway_running(gateway.home) as again:
        again.route(upstream)
        assert again.predict("a card").status_code == 200
        stop(again)
    result = verify(trail(gateway))
    assert result.all_problems == [] and len(result.chains) == 1
    recorded = {record.request_id for record in Reader(trail(gateway)).records()}
    assert set(answered) <= recorded
    kinds = [line.kind for line in Reader(trail(gateway)).lines() if line.kind != "inference"]
    assert [kind for kind in kinds if kind != "recovered"] == ["opened", "opened", "closed"]


def test_refused_and_failed_requests_are_recorded(gateway: Gateway) -> None:
    gateway.predict("a card", **{"x-subject": "ann", "x-request-id": "good"})
    gateway.predict("wrong", **{"x-request-id": "failed"})
    gateway.predict("a card", use_case="nobody", **{"x-request-id": "unknown"})
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a card"]}]}
    httpx.post(f"{gateway.url}/v2/models/support/infer", json=body, headers={"x-request-id": "raw"})
    keys = open_keys(trail(gateway))
    reader = Reader(trail(gateway), keys)
    found = {record.request_id: record for record in reader.records()}
    assert {name: record.status for name, record in found.items()} == {
        "good": 200, "failed": 502, "unknown": 404, "raw": 200,
    }  # fmt: skip
    assert (found["good"].version, found["good"].route, found["good"].tenant) == (1, "stable", "default")
    opened = reader.open(found["good"])
    assert json.loads(opened.input or b"") == ["a card"]
    assert json.loads(opened.output or b"") == {"labels": ["card"], "scores": [0.75], "abstain": [False]}
    assert found["unknown"].input is None and found["failed"].problem
    assert json.loads(reader.open(found["raw"]).input or b"") == body
    keys.close()


def limit_files(gateway: Gateway, size: int) -> None:
    """What a full disk does to the writer: bytes beyond `size` are refused."""
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_without_room_nothing_leaves_unrecorded_and_afterwards_all_is_well(gateway: Gateway) -> None:
    assert gateway.predict("a card", **{"x-request-id": "before"}).status_code == 200
    (file,) = segments(only_chain(trail(gateway)))
    limit_files(gateway, file.stat().st_size + 100)
    refused = gateway.predict("a card", **{"x-request-id": "during"})
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert "audit record cannot be written" in refused.json()["detail"]
    ready = httpx.get(f"{gateway.url}/readyz")
    assert ready.status_code == 503 and "File too large" in ready.json()["audit"]
    assert gateway.metric("gateway_audit_up") == 0
    assert gateway.metric("gateway_audit_records_total", outcome="unavailable") == 1
    limit_files(gateway, resource.RLIM_INFINITY)
    until(lambda: httpx.get(f"{gateway.url}/readyz").status_code == 200, "the trail to be writable")
    assert gateway.predict("a card", **{"x-request-id": "after"}).status_code == 200
    stop(gateway)
    assert verify(trail(gateway)).all_problems == []
    lines = list(Reader(trail(gateway)).lines())
    assert [getattr(line, "request_id", line.kind) for line in lines] == [
        "opened", "before", "resumed", "after", "closed",
    ]  # fmt: skip


def test_a_request_is_run_again_on_the_version_that_answered(
    gateway: Gateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.predict("a card", "another", **{"x-request-id": "one", "x-subject": "ann"})
    monkeypatch.setenv("LEITSTAND_HOME", str(gateway.home))

    def run(*arguments: str) -> dict[str, Any]:
        return json.loads(CliRunner().invoke(replay.app, ["one", "--json", *arguments], catch_exceptions=False).stdout)

    said = run()
    assert (said["outcome"], said["version"], said["url"]) == ("identical", 1, upstream.target.url)
    other = Upstream(2, free_ports(1)[0], gateway.home)
    other.start()
    try:
        with pytest.raises(NotFoundError, match="answers as version 2"):
            run("--url", other.target.url)
    finally:
        other.kill()
    table = gateway.store.read("support")
    assert table is not None
    gone = table.model_copy(update={"stable": Target(version=9, url="http://127.0.0.1:9")})
    gateway.store.write(gone, expected=table.revision)
    with pytest.raises(NotFoundError, match="is not served"):
        run()
    with pytest.raises(NotFoundError, match="not packaged"):
        run("--serve")
    keys = open_keys(trail(gateway))
    keys.erase(Scope("default", "ann"))
    keys.close()
    with pytest.raises(PolicyDenied, match="erased"):
        run()
    # the gateway notices, and knows the same person under another name from now on
    before = Reader(trail(gateway)).find("one")[0].subject
    gateway.route(upstream)
    gateway.predict("a card", **{"x-request-id": "two", "x-subject": "ann"})
    assert Reader(trail(gateway)).find("two")[0].subject != before


def test_a_use_case_may_be_recorded_relaxed_or_not_at_all(tmp_path: Path, upstream: Upstream, project: Path) -> None:
    text = (project / "usecases" / "support" / "usecase.yaml").read_text()
    for name, mode in (("support", "relaxed"), ("other", "off")):
        folder = tmp_path / "home" / "usecases" / name
        folder.mkdir(parents=True)
        (folder / "usecase.yaml").write_text(
            f"{text}\naudit: {{mode: {mode}}}\n".replace("name: support", f"name: {name}")
        )
    with gateway_running(tmp_path / "home") as running:
        running.route(upstream)
        table = running.store.read("support")
        assert table is not None
        running.store.write(table.model_copy(update={"use_case": "other", "revision": 0}), expected=0)
        until(lambda: "other" in running.ready()["routes"], "the routes of the other use case")
        for name in ("support", "other"):
            response = running.predict("a card", use_case=name, **{"x-request-id": name})
            assert response.status_code in (200, 502), response.text  # the upstream knows one of them only
        stop(running)
        trail_folder = trail(running)
    assert [record.request_id for record in Reader(trail_folder).records()] == ["support"]
    assert verify(trail_folder).all_problems == []


def test_a_packaged_version_is_served_for_as_long_as_it_is_asked(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    record = BentoRecord(
        tag="support:v1-a-b", path=tmp_path, digest="sha256:1", version=1, engine="torch", precision="fp32",
        weights_digest="sha256:2", built_at=utc_now(),
    )  # fmt: skip
    records = tmp_path / "bentoml" / "records"
    records.mkdir(parents=True)
    (records / "support-v1-a-b.json").write_text(record.model_dump_json())
    command = [sys.executable, "-m", "tests.tiny_upstream", "1"]
    with served_once(settings, "support", 1, lambda tag, port: [*command, str(port)]) as url:
        assert httpx.get(f"{url}/v2/models/support").json()["versions"] == ["1"]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/v2")
