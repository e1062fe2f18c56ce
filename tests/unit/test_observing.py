"""What the outermost layer of the gateway sees and counts."""

from typing import Any

import pytest
from prometheus_client import REGISTRY

from leitstand.types import Usage
from services.asgi import EXCHANGE
from services.exchange import Exchange, TextPayload
from services.observing import Observed, Seen, operation_of
from services.trace_context import TRACE_ID, traceparent_of
from services.upstreams import Reply

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
VALID = f"00-{TRACE}-00f067aa0ba902b7-01"


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[Seen] = []

    def began(self, seen: Seen) -> None:
        self.calls.append("began")

    def answering(self, seen: Seen) -> None:
        self.calls.append(f"answering {seen.status}")

    def ended(self, seen: Seen) -> None:
        self.calls.append("ended")
        self.seen.append(seen)

    def close(self) -> None:
        self.calls.append("closed")


async def answered(scope: Any, receive: Any, send: Any) -> None:
    exchange = Exchange(
        use_case="support", request_id="r", subject="", payload=TextPayload(["a"]), path="", deadline=0,
        usage=Usage(tokens_in=7, tokens_out=0, cost_micros=500_000), reply=Reply(200, b"", ""),
    )  # fmt: skip
    scope[EXCHANGE] = exchange
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": TRACE_ID.get().encode()})


async def request(app: Any, path: str, *headers: tuple[bytes, bytes], method: str = "POST") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": list(headers)}, None, send)
    return sent


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("path", "operation", "use_case"),
    [
        ("/v1/support/predict", "predict", "support"),
        ("/v1/support/feedback", "feedback", "support"),
        ("/v1/support/jobs", "jobs", "support"),
        ("/v1/support/jobs/17/result", "jobs", "support"),
        ("/v1/chat/completions", "chat", ""),
        ("/v1/models/finance", "models", ""),
        ("/v2/models/support/infer", "infer", "support"),
        ("/v2/models/support/versions/1/infer", "infer", "support"),
        ("/v2/models/support", "metadata", "support"),
        ("/v2/health/ready", "metadata", ""),
        ("/v2", "metadata", ""),
        ("/readyz", "health", ""),
        ("/metrics", "metrics", ""),
        ("/docs/assets/x.js", "docs", ""),
        ("/v1/support/unknown", "other", ""),
        ("/", "other", ""),
        ("", "other", ""),
        ("/wp-admin/setup.php", "other", ""),
    ],
)
def test_a_path_is_one_of_a_few_operations(path: str, operation: str, use_case: str) -> None:
    assert operation_of(path) == (operation, use_case)


async def test_a_request_is_counted_with_its_tokens_and_cost_and_told_to_watchers_in_order() -> None:
    who = {"operation": "predict", "use_case": "support"}
    requests = counted("gateway_http_requests_total", **who, status="200")
    spent = counted("gateway_cost_total", use_case="support")
    read = counted("gateway_tokens_total", use_case="support", direction="in")
    notes = Notes()
    await request(Observed(answered, lambda name: name == "support", notes), "/v1/support/predict")
    assert notes.calls == ["began", "answering 200", "ended"]
    assert counted("gateway_http_requests_total", **who, status="200") == requests + 1
    assert counted("gateway_cost_total", use_case="support") == spent + 0.5
    assert counted("gateway_tokens_total", use_case="support", direction="in") == read + 7
    assert notes.seen[0].exchange is not None and notes.seen[0].seconds > 0


async def test_names_that_clients_invent_make_no_series() -> None:
    async def refused(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    app = Observed(refused, lambda name: False)
    await request(app, "/v1/first/predict")
    await request(app, "/first", method="GET")
    before = sum(len(list(family.samples)) for family in REGISTRY.collect())
    for number in range(200):
        await request(app, f"/v1/name-{number}/predict")
        await request(app, f"/path-{number}", method=f"M{number}")
    assert sum(len(list(family.samples)) for family in REGISTRY.collect()) == before


async def test_a_request_that_fails_without_an_answer_counts_as_one_whose_client_went_away() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    notes = Notes()
    with pytest.raises(RuntimeError):
        await request(Observed(broken, lambda name: True, notes), "/v1/support/predict")
    assert notes.calls == ["began", "ended"] and notes.seen[0].status == 499


async def test_the_callers_trace_is_known_inside_and_forgotten_afterwards() -> None:
    sent = await request(Observed(answered, lambda name: True), "/v1/support/predict", (b"traceparent", VALID.encode()))
    assert sent[1]["body"] == TRACE.encode()
    assert TRACE_ID.get() == ""


@pytest.mark.parametrize(
    "value",
    [
        "", "x", VALID.upper(), VALID[:-1], VALID + "0", "ff" + VALID[2:], f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01", VALID.replace("-", "_"),
    ],
)  # fmt: skip
def test_a_broken_traceparent_is_none(value: str) -> None:
    assert traceparent_of([(b"traceparent", value.encode())]) == ""


def test_a_newer_version_of_traceparent_is_read_by_its_first_fields() -> None:
    assert traceparent_of([(b"traceparent", f"01-{TRACE}-00f067aa0ba902b7-01-more".encode())])[3:35] == TRACE
