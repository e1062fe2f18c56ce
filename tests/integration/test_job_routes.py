"""Whose job it is, how much is taken on, and what is told to whom; the gateway in this process, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from governance.routes.opening import open_route_store
from leitstand.errors import AuthenticationFailed
from leitstand.settings import JobSettings, Settings
from leitstand.types import Caller, RouteTable, Target, utc_now
from services.exchange import Exchange
from services.gateway import create_app
from services.gateway_lifetime import opened
from services.gateway_wiring import wire
from services.jobs.events import EventStreams
from services.jobs.queue import JobQueue
from services.scheduling import Overloaded
from tests.servers import RedisServer


async def by_header(exchange: Exchange) -> None:
    """Who asks is who the header says: enough to test what follows from it."""
    tenant = exchange.headers.get(b"x-tenant")
    if tenant is None:
        raise AuthenticationFailed("Nobody we know")
    exchange.caller = Caller(subject="ada", tenant=tenant.decode(), method="jwt")
    exchange.subject = exchange.subject or "ada"


@asynccontextmanager
async def api(home: Path, **jobs: Any) -> AsyncIterator[tuple[httpx.AsyncClient, JobQueue | None]]:
    settings = Settings(home=home, usecases=home, jobs=JobSettings(**jobs))
    target = Target(version=1, url="http://127.0.0.1:1")
    table = RouteTable(use_case="support", stable=target, changed_at=utc_now(), actor="test", reason="test")
    open_route_store(settings).write(table, expected=0)
    gateway = wire(settings, authenticate=by_header)
    transport = httpx.ASGITransport(app=create_app(gateway))  # type: ignore[arg-type]
    async with opened(gateway), httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        client.headers["x-tenant"] = "acme"
        yield client, gateway.jobs


async def submit(client: httpx.AsyncClient, *texts: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/support/jobs", json={"texts": texts or ("a",)}, **more)


async def test_a_job_exists_for_its_tenant_only(redis_server: RedisServer, tmp_path: Path) -> None:
    async with api(tmp_path, redis_uri=redis_server.database()) as (client, queue):
        path = (await submit(client)).headers["location"]
        job = path.rsplit("/", 1)[1]
        other, nobody = {"x-tenant": "other"}, client.build_request("GET", path)
        for method, each in (("GET", path), ("GET", f"{path}/result"), ("GET", f"{path}/events"), ("DELETE", path)):
            got = await client.request(method, each, headers=other)
            assert (got.status_code, got.headers["content-type"]) == (404, "application/problem+json")
            assert got.json()["detail"] == f"No job {job}", "the same words as for a job that never was"
        assert (await client.get(path.replace("support", "finance"))).status_code == 404
        del nobody.headers["x-tenant"]
        assert (await client.send(nobody)).status_code == 401
        assert (await client.get(path)).json()["state"] == "queued"
        taken = await queue.take("w", (), 60)  # type: ignore[union-attr]
        assert taken and (taken.caller.subject, taken.caller.tenant, taken.subject) == ("ada", "acme", "ada")


async def test_the_same_key_of_another_tenant_is_another_job(redis_server: RedisServer, tmp_path: Path) -> None:
    async with api(tmp_path, redis_uri=redis_server.database()) as (client, _):
        key = {"idempotency-key": "k"}
        mine = await submit(client, headers=key)
        other = await submit(client, headers=key | {"x-tenant": "other"})
        assert mine.json()["id"] != other.json()["id"]


async def test_too_much_is_refused_with_a_time_to_come_back(redis_server: RedisServer, tmp_path: Path) -> None:
    limits = {"max_open": 2, "max_open_per_tenant": 1, "max_texts": 2}
    async with api(tmp_path, redis_uri=redis_server.database(), **limits) as (client, _):
        assert (await submit(client, "a", "b", "c")).status_code == 422
        assert (await submit(client)).status_code == 202
        tenant = await submit(client)
        assert (tenant.status_code, tenant.json()["limit"]) == (429, "tenant:open_jobs")
        assert (await submit(client, headers={"x-tenant": "other"})).status_code == 202
        full = await submit(client, headers={"x-tenant": "third"})
        assert full.status_code == 503 and "job queue" in full.json()["detail"]
        assert int(tenant.headers["retry-after"]) > 0 and int(full.headers["retry-after"]) > 0


async def test_a_gateway_without_a_queue_says_what_is_missing(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, queue):
        assert queue is None
        got = await submit(client)
        assert got.status_code == 503 and "LEITSTAND_JOBS__REDIS_URI" in got.json()["hint"]


async def test_nobody_jumps_the_queue_without_leave(redis_server: RedisServer, tmp_path: Path) -> None:
    async with api(tmp_path, redis_uri=redis_server.database()) as (client, _):
        body = {"texts": ["a"], "priority": "high"}
        assert (await client.post("/v1/support/jobs", json=body)).json()["priority"] == "normal"
        assert (await client.post("/v1/support/jobs", json=body | {"priority": "low"})).json()["priority"] == "low"


async def test_an_event_stream_breathes_and_ends_with_its_gateway(redis_server: RedisServer, tmp_path: Path) -> None:
    async with api(tmp_path, redis_uri=redis_server.database()) as (client, queue):
        assert queue is not None
        status = await queue.status((await submit(client)).json()["id"])
        assert status is not None
        ending = False
        streams = EventStreams(1, lambda: ending, heartbeat_s=0)
        response = await streams.respond(queue, status, "not an id")
        got = []
        async for block in response.body_iterator:  # type: ignore[attr-defined]
            got.append(block)
            if len(got) == 1:
                with pytest.raises(Overloaded):
                    await streams.respond(queue, status, "")
            ending = len(got) == 3
        assert b"event: progress" in got[0] and got[1] == got[2] == b": still here\n\n"
        again = await streams.respond(queue, status, "")
        assert again.status_code == 200
        await asyncio.sleep(0)
