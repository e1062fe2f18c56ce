"""Traces of the gateway for OpenTelemetry: a span per request, one per deciding stage, one per call of an upstream.

Only imported where ``telemetry.traces_url`` is set; without it nothing of this costs anything. A caller's W3C
trace context is continued and handed on to upstreams. Spans are exported over OTLP/HTTP by a thread of the SDK; when
the collector does not answer, they are dropped. They carry names, numbers and ids: no text, no credential, no subject,
no tenant, and of an error only its type, because messages may quote what a caller sent.
"""

from dataclasses import replace
from typing import Any

import aiohttp
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from leitstand import __version__
from leitstand.settings import TelemetrySettings
from services.exchange import CHAT_NOTES, Exchange
from services.observing import Seen
from services.policies import Policies, Policy, admit_everything
from services.trace_context import TRACE_ID

__all__ = ["Tracing"]

ROUTES = {
    "predict": "/v1/{use_case}/predict", "feedback": "/v1/{use_case}/feedback", "jobs": "/v1/{use_case}/jobs",
    "chat": "/v1/chat/completions", "infer": "/v2/models/{use_case}/infer", "metadata": "/v2",
}  # fmt: skip
METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
CARRIED = {b"traceparent", b"tracestate"}
STAGES = ("authenticate", "admit", "guard_input", "guard_output", "settle", "audit")
CLIENT_ERROR, SERVER_ERROR = 400, 500


class Tracing:
    """The spans of one gateway. A `services.observing.Watcher`.

    Args:
        settings: Where to, and how many.
        environment: Name of the installation's environment.
        exporter: Instead of OTLP over HTTP.
    """

    def __init__(
        self, settings: TelemetrySettings, environment: str = "local", exporter: SpanExporter | None = None
    ) -> None:
        about = {
            "service.name": settings.service_name, "service.version": __version__,
            "deployment.environment.name": environment,
        }  # fmt: skip
        exporter = exporter or OTLPSpanExporter(
            endpoint=settings.traces_url, headers=_headers(settings), timeout=settings.traces_timeout_s
        )
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        self._provider = TracerProvider(resource=Resource.create(about), sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("leitstand.gateway", __version__)
        self._context = TraceContextTextMapPropagator()

    def began(self, seen: Seen) -> None:
        """Opens the request's span and makes it the current one; health, metrics and pages have none."""
        route = ROUTES.get(seen.operation)
        if route is None:
            return
        method = seen.scope["method"] if seen.scope["method"] in METHODS else "_OTHER"
        carrier = {name.decode(): value.decode("latin-1") for name, value in seen.scope["headers"] if name in CARRIED}
        parent = self._context.extract(carrier) if carrier else None
        about = {"http.request.method": method, "http.route": route, "url.scheme": seen.scope.get("scheme", "http")}
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, about)
        seen.trace_id = format(span.get_span_context().trace_id, "032x")
        TRACE_ID.set(seen.trace_id)
        seen.span = span, attach(set_span_in_context(span, parent))

    def answering(self, seen: Seen) -> None:
        """Tells the caller under which trace the request is found."""
        if seen.span is not None and seen.headers is not None:
            carrier: dict[str, str] = {}
            self._context.inject(carrier, set_span_in_context(seen.span[0]))
            seen.headers.append((b"traceparent", carrier["traceparent"].encode()))

    def ended(self, seen: Seen) -> None:
        """Closes the span with what is known by now."""
        if seen.span is None:
            return
        span, token = seen.span
        detach(token)
        if span.is_recording():
            span.set_attributes(_about(seen))
            if seen.status >= SERVER_ERROR:
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Exports what is left, for as long as one export may take."""
        self._provider.shutdown()

    def policies(self, policies: Policies) -> Policies:
        """The same policies, the stages with a span each; those that do nothing get none."""
        return replace(policies, **{name: self._staged(name, getattr(policies, name)) for name in STAGES})

    def calls(self) -> aiohttp.TraceConfig:
        """What an upstream client needs so that its calls have spans and carry the trace context."""
        config = aiohttp.TraceConfig()
        config.on_request_start.append(self._call_began)
        config.on_request_end.append(self._call_ended)
        config.on_request_exception.append(self._call_failed)
        return config

    def _staged(self, name: str, policy: Policy) -> Policy:
        if policy is admit_everything:
            return policy

        async def staged(exchange: Exchange) -> None:
            if not get_current_span().is_recording():
                await policy(exchange)
                return
            span = self._tracer.start_span(name)
            token = attach(set_span_in_context(span))
            try:
                await policy(exchange)
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise
            finally:
                detach(token)
                span.end()

        return staged

    async def _call_began(self, _: Any, context: Any, asked: aiohttp.TraceRequestStartParams) -> None:
        about: dict[str, str | int] = {"http.request.method": asked.method, "server.address": asked.url.host or ""}
        about |= {"server.port": asked.url.port} if asked.url.port else {}
        context.span = span = self._tracer.start_span(f"call {asked.method}", None, SpanKind.CLIENT, about)
        carrier: dict[str, str] = {}
        self._context.inject(carrier, set_span_in_context(span))
        asked.headers.update(carrier)

    async def _call_ended(self, _: Any, context: Any, got: aiohttp.TraceRequestEndParams) -> None:
        span: Span = context.span
        span.set_attribute("http.response.status_code", got.response.status)
        if got.response.status >= CLIENT_ERROR:
            span.set_attribute("error.type", str(got.response.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    async def _call_failed(self, _: Any, context: Any, failed: aiohttp.TraceRequestExceptionParams) -> None:
        span: Span = context.span
        span.set_attribute("error.type", type(failed.exception).__name__)
        span.set_status(Status(StatusCode.ERROR))
        span.end()


def _about(seen: Seen) -> dict[str, str | int | float]:
    about: dict[str, str | int | float] = {"http.response.status_code": seen.status}
    about |= {"leitstand.use_case": seen.use_case} if seen.use_case else {}
    about |= {"error.type": str(seen.status)} if seen.status >= SERVER_ERROR else {}
    exchange = seen.exchange
    if exchange is None:
        return about
    about["leitstand.request_id"] = exchange.request_id
    if exchange.route:
        about |= {"leitstand.version": exchange.version, "leitstand.route": exchange.route}
        about["leitstand.upstream_ms"] = round(exchange.upstream_s * 1000, 3)
    for action in ("mask", "block", "review"):
        count = sum(verdict.action == action for verdict in exchange.verdicts)
        about |= {f"leitstand.guard.{action}": count} if count else {}
    return about | (_about_chat(exchange) if seen.operation == "chat" else {})


def _about_chat(exchange: Exchange) -> dict[str, str | int | float]:
    """Attributes of the semantic conventions for generative AI, without the messages."""
    model = exchange.notes.get(CHAT_NOTES, {}).get("model")
    about: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": exchange.use_case,
        "gen_ai.usage.input_tokens": exchange.usage.tokens_in, "gen_ai.usage.output_tokens": exchange.usage.tokens_out,
    }  # fmt: skip
    return about | ({"gen_ai.response.model": str(model)} if model else {})


def _headers(settings: TelemetrySettings) -> dict[str, str]:
    """``name=value,name=value`` as a map."""
    if settings.traces_headers is None:
        return {}
    pairs = (pair.partition("=") for pair in settings.traces_headers.get_secret_value().split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
