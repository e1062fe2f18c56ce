"""A real gateway process in front of real model servers, under load, while things change and break."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from governance.input_store import open_input_store
from leitstand.settings import MonitoringSettings, Settings
from tests.gateway_processes import (
    Gateway,
    Upstream,
    answers,
    gateway_running,
    load,
    until,
    waited,
)
from tests.servers import free_ports, redis_running, running, wait_until

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a card"]}


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Upstream]]:
    folder = tmp_path_factory.mktemp("upstreams")
    made = [Upstream(version, port, folder) for version, port in enumerate(free_ports(3), start=1)]
    for upstream in made:
        upstream.start()
    yield made
    for upstream in made:
        upstream.kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_running(tmp_path_factory.mktemp("gateway")) as running_gateway:
        yield running_gateway


def test_a_prediction_says_who_made_it(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0])
    response = gateway.predict("a card", "another")
    document = response.json()
    assert response.status_code == 200
    assert document["predictions"] == [
        {"label": "card", "score": 0.75, "abstain": False, "top": [
            {"label": "card", "score": 0.75}, {"label": "pin", "score": 0.25}, {"label": "fee", "score": 0.0},
        ]},
    ] * 2  # fmt: skip
    assert (document["version"], document["route"]) == (1, "stable")
    headers = response.headers
    assert (headers["x-leitstand-version"], headers["x-leitstand-route"]) == ("1", "stable")
    assert headers["x-request-id"] == document["request_id"]
    assert 0 < float(headers["x-leitstand-overhead-ms"]) < 1000
    assert gateway.predict("a", **{"x-request-id": "order-17"}).headers["x-request-id"] == "order-17"


def test_protocol_requests_pass_through_byte_for_byte(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0])
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "embedding")]
    for body in ({"inputs": [TENSOR]}, {"inputs": [TENSOR], "outputs": outputs}):
        for path in ("/v2/models/support/infer", "/v2/models/support/versions/1/infer"):
            direct = httpx.post(f"{upstreams[0].target.url}{path}", json=body)
            through = httpx.post(f"{gateway.url}{path}", json=body)
            assert through.status_code == 200 and through.content == direct.content
            assert through.headers["x-leitstand-version"] == "1"
            key = "inference-header-content-length"
            assert through.headers.get(key) == direct.headers.get(key)
    assert httpx.get(f"{gateway.url}/v2/models/support").json()["platform"] == "tiny"
    assert httpx.get(f"{gateway.url}/v2").json()["name"] == "leitstand-gateway"
    assert httpx.get(f"{gateway.url}/v2/health/ready").json() == {"ready": True}


def test_shares_are_kept_and_subjects_stay_where_they_are(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0], canary=upstreams[1].target, canary_percent=20.0)

    def versions() -> list[int]:
        with httpx.Client() as client:
            url = f"{gateway.url}/v1/support/predict"
            return [
                client.post(url, json={"text": "a"}, headers={"x-subject": f"s-{i}"}).json()["version"]
                for i in range(300)
            ]

    first = versions()
    assert binomtest(first.count(2), 300, 0.2).pvalue > 1e-6
    gateway.route(upstreams[0], canary=upstreams[1].target, canary_percent=50.0)
    second = versions()
    assert all(later == 2 for earlier, later in zip(first, second, strict=True) if earlier == 2)
    assert binomtest(second.count(2), 300, 0.5).pvalue > 1e-6


async def test_a_changed_weight_takes_hold_under_load_without_a_lost_request(
    gateway: Gateway, upstreams: list[Upstream]
) -> None:
    gateway.route(upstreams[0], canary=upstreams[1].target, canary_percent=0.0)
    base = gateway.metric("gateway_requests_total", version="2", status="200")

    async def change() -> None:
        await asyncio.to_thread(lambda: gateway.route(upstreams[0], canary=upstreams[1].target, canary_percent=100.0))
        await waited(
            lambda: gateway.metric("gateway_requests_total", version="2", status="200") > base + 50, "the canary"
        )

    seen = await load(gateway, change())
    assert {status for status, _, _ in seen} == {200}
    versions = [version for _, version, _ in seen]
    assert set(versions[-20:]) == {"2"}


async def test_a_canary_killed_under_load_costs_no_caller_an_answer(
    gateway: Gateway, upstreams: list[Upstream]
) -> None:
    gateway.route(upstreams[0], canary=upstreams[1].target, canary_percent=50.0)
    failed = gateway.metric("gateway_upstream_failures_total", version="2", route="canary")
    base = gateway.metric("gateway_requests_total", version="2", status="200")

    async def kill() -> None:
        await waited(
            lambda: gateway.metric("gateway_requests_total", version="2", status="200") > base + 20, "the canary"
        )
        await asyncio.to_thread(upstreams[1].kill)
        await waited(
            lambda: gateway.metric("gateway_upstream_failures_total", version="2", route="canary") > failed + 20,
            "failures of the canary",
        )

    try:
        seen = await load(gateway, kill())
    finally:
        upstreams[1].start()
    assert Counter(status for status, _, _ in seen) == {200: len(seen)}
    assert {route for _, _, route in seen} == {"canary", "stable"}
    assert all((version == "2") == (route == "canary") for _, version, route in seen)


def test_a_shadow_is_asked_and_compared_and_never_returned(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0], shadow=upstreams[2].target)
    name, labels = "gateway_shadow_answers_total", {"version": "3", "outcome": "disagree"}
    before = gateway.metric(name, **labels)
    responses = [gateway.predict("a card") for _ in range(5)]
    assert {response.json()["version"] for response in responses} == {1}
    until(lambda: gateway.metric(name, **labels) == before + 5, "the shadow's answers")
    until(lambda: {"stable", "shadow"} <= set(logged(gateway, "route")), "the rows of both")


def test_the_log_has_vectors_and_statistics_and_no_text(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0])
    request_id = gateway.predict("a secret 42", "b").headers["x-request-id"]
    until(lambda: logged(gateway, "request_id").count(request_id) == 2, "the rows")
    table = pq.read_table(gateway.home / "inference-log", partitioning=None)  # pyright: ignore[reportArgumentType]
    (row,) = (row for row in table.to_pylist() if row["request_id"] == request_id and row["index"] == 0)
    assert (row["version"], row["label"], row["characters"], row["words"]) == (1, "card", 11, 3)
    assert len(row["embedding"]) == 8 and len(row["probabilities"]) == 6
    files = (gateway.home / "inference-log").rglob("*.parquet")
    assert not any(b"secret" in file.read_bytes() for file in files)


def logged(gateway: Gateway, column: str) -> list[Any]:
    folder = gateway.home / "inference-log"
    return pq.read_table(folder, partitioning=None)[column].to_pylist() if folder.exists() else []  # pyright: ignore[reportArgumentType]


def test_without_any_upstream_the_problem_says_so_until_it_is_back(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[2])
    upstreams[2].kill()
    response = gateway.predict("a")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["content-type"] == "application/problem+json"
    assert "takes no connections" in response.json()["detail"]
    upstreams[2].start()
    assert gateway.predict("a").json()["version"] == 3


def test_an_upstream_that_dies_on_a_request_is_an_error_of_that_request_only(
    gateway: Gateway, upstreams: list[Upstream]
) -> None:
    gateway.route(upstreams[2])
    assert gateway.predict("crash").status_code == 503
    upstreams[2].kill()
    upstreams[2].start()
    assert gateway.predict("a").status_code == 200


@pytest.mark.parametrize(("text", "status"), [("wrong", 502), ("", 400)])
def test_what_a_model_answers_is_told_apart(
    gateway: Gateway, upstreams: list[Upstream], text: str, status: int
) -> None:  # fmt: skip
    gateway.route(upstreams[0])
    response = gateway.predict(text)
    assert response.status_code == response.json()["status"] == status


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"text": 5}', b'{"texts": []}', b'{"texts": "abc"}',
        b'{"text": "a", "texts": ["b"]}', b'{"text": "a", "top_k": 0}', b'{"text": "a", "typo": 1}',
        b'{"texts": ["a", null]}', b'{"text": "\\ud800"}', b'{"text": "a"' * 1000, b"[" * 100_000,
    ],
)  # fmt: skip
def test_garbage_is_refused_with_a_reason(gateway: Gateway, upstreams: list[Upstream], body: bytes) -> None:
    gateway.route(upstreams[0])
    response = httpx.post(f"{gateway.url}/v1/support/predict", content=body)
    assert response.status_code == (400 if body.count(b"{") + body.count(b"[") > 64 else 422)  # nested too deeply
    assert response.json()["detail"]
    assert gateway.predict("a").status_code == 200


def test_feedback_that_is_no_text_is_not_valid(gateway: Gateway) -> None:
    response = httpx.post(
        f"{gateway.url}/v1/support/feedback", content=b"[\xff", headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["detail"]) == (422, "the body is not JSON")


@pytest.mark.parametrize("path", ["/v1/support/predict", "/v2/models/support/infer", "/v1/support/feedback"])
@pytest.mark.parametrize("chunked", [True, False])
def test_ten_megabytes_are_refused(gateway: Gateway, upstreams: list[Upstream], path: str, chunked: bool) -> None:
    gateway.route(upstreams[0])
    block = b"x" * 2**20
    content: Any = (block for _ in range(10)) if chunked else block * 10
    with suppress(httpx.TransportError):  # it may close the connection while we are still sending
        assert httpx.post(f"{gateway.url}{path}", content=content).status_code == 413
    assert gateway.predict("a").status_code == 200


def test_an_unknown_use_case_or_path_is_a_problem_that_helps(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0])
    refused = gateway.metric("gateway_refused_total", status="404")
    response = gateway.predict("a", use_case="suport")
    assert gateway.metric("gateway_refused_total", status="404") == refused + 1
    assert response.status_code == 404 and response.json()["hint"] == "there are: support"
    assert "there are: support" in httpx.get(f"{gateway.url}/v2/models/nobody").json()["error"]
    assert httpx.get(f"{gateway.url}/v1/support/predict").status_code == 405
    missing = httpx.get(f"{gateway.url}/nowhere")
    assert missing.status_code == 404 and missing.headers["content-type"] == "application/problem+json"
    for path in ("/v2/models/support/versions/9/infer", "/v2/models/infer", "/v2/models//infer"):
        assert httpx.post(f"{gateway.url}{path}", json={}).status_code == 404


def test_feedback_is_taken_once_and_checked(gateway: Gateway, upstreams: list[Upstream]) -> None:
    gateway.route(upstreams[0])
    request_id = gateway.predict("a").headers["x-request-id"]
    url = f"{gateway.url}/v1/support/feedback"
    said = {"request_id": request_id, "label": "pin", "source": "agent-7", "feedback_id": f"f-{request_id}"}
    first = httpx.post(url, json=said)
    assert first.status_code == 200 and first.json()["recorded"] and first.json()["known"]
    again = httpx.post(url, json=said)
    assert again.status_code == 200 and not again.json()["recorded"]
    assert httpx.post(url, json=said | {"label": "fee"}).status_code == 409
    wrong = httpx.post(url, json={"request_id": request_id, "label": "pni", "source": "agent-7"})
    assert wrong.status_code == 422 and "'pni'" in wrong.json()["detail"]
    assert httpx.post(url, json={"request_id": "long-ago", "rating": 1, "source": "s"}).json()["known"] is False
    assert httpx.post(url, json={"source": "s"}).status_code == 422
    assert httpx.post(url.replace("support", "nobody"), json=said).status_code == 404


def test_new_labels_are_taken_and_texts_kept_where_the_policy_says_so(
    upstreams: list[Upstream], project: Path, tmp_path: Path
) -> None:
    keep = {"LEITSTAND_USECASES": str(project / "usecases"), "LEITSTAND_MONITORING__KEEP_TEXTS_DAYS": "1"}
    with gateway_running(tmp_path, **keep) as gateway:
        gateway.route(upstreams[0])
        request_id = gateway.predict("Where is my card?", "and my PIN?").headers["x-request-id"]
        said = {"request_id": request_id, "label": "a_queue_of_tomorrow", "source": "agent-7"}
        taken = httpx.post(f"{gateway.url}/v1/support/feedback", json=said).json()
        assert taken["recorded"] and taken["new_label"]
        kept = open_input_store(Settings(home=tmp_path, monitoring=MonitoringSettings(keep_texts_days=1)))
        until(lambda: kept.get("support", request_id) == ["Where is my card?", "and my PIN?"], "the texts to be kept")


def test_the_documentation_lists_every_path(gateway: Gateway) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert {
        "/v1/{use_case}/predict", "/v1/{use_case}/feedback", "/v2/models/{use_case}/infer", "/livez", "/readyz",
        "/metrics",
    } <= set(document["paths"])  # fmt: skip
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {text.split('"')[0] for text in references} <= set(document["components"]["schemas"])


async def test_sigterm_under_load_loses_no_request_and_no_row(tmp_path: Path, upstreams: list[Upstream]) -> None:
    with gateway_running(tmp_path) as gateway:
        gateway.route(upstreams[0])
        answered, lost = 0, []

        async def client(session: aiohttp.ClientSession) -> None:
            """Goes elsewhere once it is told to, as a balancer does."""
            nonlocal answered
            told = False
            while not told:
                try:
                    async with session.post(f"{gateway.url}/v1/support/predict", json={"text": "a"}) as response:
                        assert response.status == 200
                        await response.read()
                        answered += 1
                        told = response.headers.get("connection") == "close"
                except (aiohttp.ClientError, AssertionError) as error:
                    lost.append(error)
                    return

        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(client(session)) for _ in range(8)]
            while answered < 100:
                await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*clients)
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0
    assert lost == []
    assert len(logged(gateway, "request_id")) == answered


def test_the_gateway_serves_on_while_redis_is_gone_and_follows_when_it_is_back(
    tmp_path: Path, upstreams: list[Upstream]
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "redis").mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(ExitStack())
        redis.enter_context(redis_running(tmp_path / "redis", port))
        gateway = stack.enter_context(gateway_running(tmp_path / "home", f"redis://127.0.0.1:{port}/0"))
        gateway.route(upstreams[0])
        redis.close()
        until(lambda: gateway.ready()["route_store"] != "ok", "the loss to be noticed")
        assert "does not answer" in gateway.ready()["route_store"]
        assert gateway.metric("gateway_route_store_up") == 0
        assert gateway.predict("a").json()["version"] == 1
        redis.enter_context(redis_running(tmp_path / "redis", port))
        gateway.route(upstreams[1])
        assert gateway.predict("a").json()["version"] == 2
        assert gateway.ready()["route_store"] == "ok"


def test_a_gateway_that_never_saw_its_routes_is_not_ready(tmp_path: Path) -> None:
    (closed, port) = free_ports(2)
    environment = os.environ | {
        "LEITSTAND_HOME": str(tmp_path), "LEITSTAND_GATEWAY__PORT": str(port),
        "LEITSTAND_GATEWAY__ROUTES_URI": f"redis://127.0.0.1:{closed}/0",
    }  # fmt: skip
    log = tmp_path / "log"
    with running([sys.executable, "-m", "leitstand.cli", "gateway"], log, env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/livez"), process, log, "the gateway")
        assert httpx.get(f"{url}/readyz").status_code == 503
        response = httpx.post(f"{url}/v1/support/predict", json={"text": "a"})
        assert response.status_code == 503 and "routes are not known" in response.json()["detail"]


def test_a_taken_port_is_said_before_anything_starts(gateway: Gateway, tmp_path: Path) -> None:
    environment = os.environ | {"LEITSTAND_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "leitstand.cli", "gateway", "--port", gateway.url.rsplit(":", 1)[1]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "is taken by another program" in done.stderr
