"""Spans of the gateway: what continues a trace, what is in it, and what never is."""

import dataclasses
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from leitstand.errors import PolicyDenied
from leitstand.settings import TelemetrySettings
from leitstand.types import Usage, Verdict
from services.asgi import EXCHANGE
from services.exchange import Exchange, TextPayload
from services.observing import Observed
from services.policies import Policies, admit_everything
from services.trace_context import TRACE_ID
from services.tracing import STAGES, Tracing
from tests.unit.test_observing import TRACE, VALID, request

PRIVATE = "my private text"


def exchange(**changes: Any) -> Exchange:
    return Exchange(
        use_case="support", request_id="r-1", subject="anna@example.org", payload=TextPayload([PRIVATE]),
        path="/v2/models/support/infer", deadline=0, **changes,
    )  # fmt: skip


async def spans(app: Any, path: str, *headers: tuple[bytes, bytes], ratio: float = 1.0, tracing: Any = None) -> Any:
    exporter = InMemorySpanExporter()
    tracing = Tracing(TelemetrySettings(sample_ratio=ratio), exporter=exporter)
    sent = await request(Observed(app(tracing), lambda name: True, tracing), path, *headers)
    tracing.close()
    return {span.name: span for span in exporter.get_finished_spans()}, sent


def answering(status: int = 200, **changes: Any) -> Any:
    """A gateway that takes an exchange through its stages and answers."""

    def made(tracing: Tracing) -> Any:
        async def check(each: Exchange) -> None: ...

        policies = tracing.policies(Policies(**dict.fromkeys(STAGES, check)))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[EXCHANGE] = each = exchange(**changes)
            for stage in STAGES:
                await getattr(policies, stage)(each)
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": TRACE_ID.get().encode()})

        return app

    return made


def parent_of(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent else 0


def span_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


async def test_a_callers_trace_is_continued_and_stages_are_children_in_order() -> None:
    found, sent = await spans(answering(), "/v1/support/predict", (b"traceparent", VALID.encode()))
    root = found.pop("POST /v1/{use_case}/predict")
    assert format(root.context.trace_id, "032x") == TRACE
    assert parent_of(root) == int("00f067aa0ba902b7", 16)
    assert list(found) == list(STAGES)
    assert {parent_of(span) for span in found.values()} == {span_id(root)}
    assert (b"traceparent", f"00-{TRACE}-{span_id(root):016x}-01".encode()) in sent[0]["headers"]
    assert sent[1]["body"].decode() == TRACE


async def test_a_request_without_a_trace_begins_one_and_a_broken_one_is_ignored() -> None:
    for headers in ([], [(b"traceparent", b"00-broken")]):
        found, sent = await spans(answering(), "/v1/support/predict", *headers)
        root = found["POST /v1/{use_case}/predict"]
        assert root.parent is None
        assert sent[1]["body"].decode() == format(root.context.trace_id, "032x")


async def test_what_a_request_is_about_is_told_and_nothing_private() -> None:
    verdicts = [Verdict("input", "pii", "mask", "pii.iban", 2), Verdict("output", "terms", "allow")]
    app = answering(version=3, route="stable", verdicts=verdicts)
    found, _ = await spans(app, "/v1/support/predict", (b"authorization", b"Bearer secret"))
    root = found["POST /v1/{use_case}/predict"]
    assert dict(root.attributes) == {
        "http.request.method": "POST", "http.route": "/v1/{use_case}/predict", "url.scheme": "http",
        "http.response.status_code": 200, "leitstand.use_case": "support", "leitstand.request_id": "r-1",
        "leitstand.version": 3, "leitstand.route": "stable", "leitstand.upstream_ms": 0.0, "leitstand.guard.mask": 1,
    }  # fmt: skip
    for text in (PRIVATE, "anna", "secret"):
        assert not any(text in span.to_json() for span in found.values())


async def test_an_error_has_its_type_and_not_its_message() -> None:
    def app(tracing: Tracing) -> Any:
        async def refuse(each: Exchange) -> None:
            raise PolicyDenied(f"The text says: {PRIVATE}")

        staged = tracing.policies(Policies(guard_input=refuse)).guard_input

        async def refusing(scope: Any, receive: Any, send: Any) -> None:
            with pytest.raises(PolicyDenied):
                await staged(exchange())
            await send({"type": "http.response.start", "status": 503, "headers": []})

        return refusing

    found, _ = await spans(app, "/v1/support/predict")
    assert dict(found["guard_input"].attributes) == {"error.type": "PolicyDenied"}
    assert not found["guard_input"].status.is_ok
    assert found["POST /v1/{use_case}/predict"].attributes["error.type"] == "503"
    assert not any(PRIVATE in span.to_json() for span in found.values())


async def test_chats_say_how_many_tokens_in_the_words_of_the_conventions() -> None:
    app = answering(usage=Usage(11, 22, 0), notes={"chat": {"model": "tiny"}})
    found, _ = await spans(app, "/v1/chat/completions")
    about = found["POST /v1/chat/completions"].attributes
    assert about["gen_ai.operation.name"] == "chat" and about["gen_ai.response.model"] == "tiny"
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (11, 22)


async def test_a_share_is_kept_but_a_callers_choice_wins() -> None:
    found, sent = await spans(answering(), "/v1/support/predict", ratio=0.0)
    assert found == {}
    flags = int(sent[0]["headers"][0][1][-2:], 16)
    assert flags & 1 == 0, "sampled"
    found, _ = await spans(answering(), "/v1/support/predict", (b"traceparent", VALID.encode()), ratio=0.0)
    assert len(found) == 7
    unsampled = VALID[:-2].encode() + b"00"
    found, _ = await spans(answering(), "/v1/support/predict", (b"traceparent", unsampled), ratio=1.0)
    assert found == {}


async def test_health_checks_and_unknown_paths_leave_no_span() -> None:
    for path in ("/readyz", "/metrics", "/wp-admin"):
        assert (await spans(answering(), path))[0].keys() <= set(STAGES)


def test_a_stage_that_does_nothing_gets_no_span() -> None:
    policies = Tracing(TelemetrySettings(), exporter=InMemorySpanExporter()).policies(Policies())
    assert all(getattr(policies, name) is admit_everything for name in STAGES)


def test_what_is_no_stage_is_kept_as_it_is() -> None:
    def guard_stream(exchange: Exchange) -> None: ...

    policies = Policies(guard_stream=guard_stream)
    traced = Tracing(TelemetrySettings(), exporter=InMemorySpanExporter()).policies(policies)
    assert traced.guard_stream is guard_stream
    names = {field.name for field in dataclasses.fields(Policies)}
    assert names == {*STAGES, "guard_stream"}, "a new stage needs a span, or a place in this test"
