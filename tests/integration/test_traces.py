"""Traces of a real gateway: through a real collector, to an endpoint that decodes them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway_processes import Gateway, Upstream, gateway_running, until
from tests.otlp_receiver import Receiver, attributes, receiving
from tests.servers import free_ports, running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PRIVATE = "the private words of a caller"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(1, free_ports(1)[0], tmp_path_factory.mktemp("upstream"))
    with made.stack:
        made.start()
        yield made


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def collector(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Rotel, a collector written in Rust: takes OTLP over HTTP and hands it on."""
    import rotel

    folder = tmp_path_factory.mktemp("collector")
    grpc, http = free_ports(2)
    command = [
        str(Path(rotel.__file__).with_name("rotel-agent")), "start", "--pid-file", str(folder / "pid"),
        "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http}",
        "--otlp-exporter-endpoint", receiver.url.removesuffix("/v1/traces"), "--otlp-exporter-protocol", "http",
        "--batch-timeout", "100ms",
    ]  # fmt: skip
    with running(command, folder / "log"):
        yield f"http://127.0.0.1:{http}/v1/traces"


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, collector: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = {
        "LEITSTAND_TELEMETRY__TRACES_URL": collector, "LEITSTAND_TELEMETRY__TRACES_HEADERS": "x-key=secret-of-it",
        "LEITSTAND_TELEMETRY__ACCESS_LOG": "all", "LEITSTAND_LOG_FILE": "logs/gateway.jsonl",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }  # fmt: skip
    with gateway_running(tmp_path_factory.mktemp("traced"), **settings) as made:
        made.route(upstream)
        yield made


def test_a_callers_trace_goes_through_the_gateway_to_the_model_and_to_the_collector(
    gateway: Gateway, receiver: Receiver
) -> None:
    response = gateway.predict(
        PRIVATE, traceparent=TRACEPARENT, tracestate="vendor=x", authorization="Bearer abc-secret"
    )
    assert response.status_code == 200
    until(lambda: any(span.trace_id.hex() == TRACE for span in receiver.named("call POST")), "the spans")
    until(lambda: bool(receiver.named("POST /v1/{use_case}/predict")), "the root span")
    (root,) = receiver.named("POST /v1/{use_case}/predict")
    assert root.trace_id.hex() == TRACE and root.parent_span_id.hex() == PARENT
    assert root.trace_state == "vendor=x"
    (call,) = receiver.named("call POST")
    assert call.parent_span_id == root.span_id
    about = attributes(root)
    assert (about["leitstand.use_case"], about["leitstand.version"], about["leitstand.route"]) == (
        "support",
        1,
        "stable",
    )
    assert about["http.response.status_code"] == 200
    assert about["leitstand.request_id"] == response.headers["x-request-id"]
    assert response.headers["traceparent"] == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert receiver.resources[-1]["service.name"] == "leitstand-gateway"
    for private in (PRIVATE, "abc-secret"):
        assert private.encode() not in receiver.raw


def test_the_model_is_called_in_the_context_of_its_span(
    gateway: Gateway, receiver: Receiver, upstream: Upstream
) -> None:
    assert gateway.predict("a").status_code == 200
    seen = httpx.get(f"{upstream.target.url}/seen").json()
    until(lambda: seen["traceparent"][36:52] in {span.span_id.hex() for span in receiver.spans}, "the span of the call")


def test_a_refused_request_says_under_which_trace_it_is_found(gateway: Gateway, receiver: Receiver) -> None:
    response = gateway.predict("a", use_case="nobody", traceparent=TRACEPARENT)
    assert response.json()["trace_id"] == TRACE
    own = gateway.predict("a", use_case="nobody")
    trace = own.json()["trace_id"]
    assert trace == own.headers["traceparent"][3:35]
    until(lambda: trace in {span.trace_id.hex() for span in receiver.spans}, "the refused request's span")


def test_the_access_log_has_the_same_trace_and_no_text(gateway: Gateway) -> None:
    gateway.predict(PRIVATE, traceparent=TRACEPARENT)
    path = gateway.home / "logs" / "gateway.jsonl"

    def lines() -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    until(lambda: any(line.get("trace", {}).get("id") == TRACE for line in lines()), "the line")
    line = next(line for line in lines() if line.get("trace", {}).get("id") == TRACE)
    assert line["event"]["action"] == "predict" and line["http"]["response"]["status_code"] in (200, 404)
    assert PRIVATE not in path.read_text() and "secret" not in path.read_text()


def test_a_collector_that_is_away_costs_no_answer(upstream: Upstream, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}/v1/traces"
    settings = {"LEITSTAND_TELEMETRY__TRACES_URL": nowhere, "LEITSTAND_TELEMETRY__TRACES_TIMEOUT_S": "0.2",
        "OTEL_BSP_SCHEDULE_DELAY": "50"}  # fmt: skip
    with gateway_running(tmp_path / "home", **settings) as away:
        away.route(upstream)
        assert [away.predict("a").status_code for _ in range(20)] == [200] * 20
        until(lambda: "opentelemetry" in (tmp_path / "home" / "gateway.log").read_text(), "the exporter's complaint")
        lines = (tmp_path / "home" / "gateway.log").read_text().splitlines()
        assert all(json.loads(line)["log.level"] for line in lines if line.startswith("{"))
        assert not any(line.startswith("Traceback") for line in lines)


def test_without_an_endpoint_a_callers_trace_is_handed_on_as_it_came(upstream: Upstream, tmp_path: Path) -> None:
    with gateway_running(tmp_path / "home") as plain:
        plain.route(upstream)
        assert "traceparent" not in plain.predict("a", traceparent=TRACEPARENT).headers
        assert httpx.get(f"{upstream.target.url}/seen").json()["traceparent"] == TRACEPARENT


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, services.gateway\n"
        "print([m for m in sys.modules if m.startswith(('services.tracing', 'opentelemetry.sdk.trace', "
        "'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
