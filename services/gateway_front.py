"""The gateway's hot paths as a bare ASGI application in front of the FastAPI one.

    POST /v1/{use_case}/predict                               texts in, predictions out
    POST /v2/models/{use_case}[/versions/N]/infer             bytes in, bytes out
    GET  /v2..., /v2/health/live, /v2/health/ready            metadata and health of the protocol
    POST /v1/chat/completions, GET /v1/models                 OpenAI's API (`services.chat_front`)

FastAPI's routing, request objects and response models cost several times as much as the work of a gateway;
its documentation lists these paths all the same (`services.gateway_docs`). Everything else is FastAPI's.
"""

import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import structlog
from pydantic import ValidationError

from leitstand import __version__
from leitstand.errors import LeitstandError
from services.asgi import EXCHANGE, ClientGone, read_body, respond
from services.chat_front import ChatFront
from services.errors import JSON, HttpError, Response, not_found
from services.exchange import Exchange, RawPayload, TextPayload
from services.gateway_metrics import REFUSED
from services.gateway_wiring import Gateway
from services.guarded import Guarded
from services.json_depth import refuse_deep
from services.predictions import predictions_of
from services.problems import problem, problem_for, protocol_error
from services.recent import RecentAnswer
from services.request_ids import request_id_from
from services.schemas import PredictRequest
from services.trace_context import TRACE_ID
from services.upstreams import HEAD_BYTES, Reply

__all__ = ["Front"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PASSED_ON = {b"content-type", b"content-encoding", HEAD_BYTES.encode(), b"traceparent", b"tracestate"}
OK = 200

logger = structlog.get_logger()


class Front:
    """Answers the hot paths and passes everything else to `app`.

    Args:
        app: The FastAPI application behind its guard.
        gateway: The parts it answers with, and its limits.
    """

    def __init__(self, app: Guarded, gateway: Gateway) -> None:
        self._app = app
        self._inference = gateway.inference
        self._recent = gateway.recent
        self._auditor = gateway.auditor
        self._deadline_s = gateway.settings.deadline_s
        self._max_body = gateway.settings.max_body_bytes
        self._max_job_body = gateway.job_settings.max_body_bytes
        self._max_texts = gateway.settings.max_texts
        self._max_depth = gateway.settings.max_json_depth
        self._access = gateway.access
        self._chats = ChatFront(gateway, lambda: self.draining)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith("/v2"):
                await self._protocol(scope, receive, send, path)
                return
            if self._chats.answers(path):
                await self._chats(scope, receive, send)
                return
            parts = path.split("/")
            if len(parts) == 4 and parts[1] == "v1" and parts[3] == "predict":  # noqa: PLR2004
                await self._predict(scope, receive, send, parts[2])
                return
            if scope["method"] not in ("GET", "HEAD"):
                limit = self._max_job_body if path.endswith("/jobs") else self._max_body
                await self._bounded(scope, receive, send, limit)
                return
        await self._app(scope, receive, send)

    def drain(self) -> None:
        """Reports unready from now on, and closes each connection with its answer; requests are still answered."""
        self.draining = True

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Hands FastAPI a body that was read already, because it would read any length; a stranger's is not read."""
        try:
            await self._app.check(scope)
            body = await read_body(receive, dict(scope["headers"]), limit)
            refuse_deep(body, self._max_depth)
        except ClientGone:
            return
        except (HttpError, LeitstandError) as error:
            await respond(send, problem_for(error))
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> MutableMapping[str, Any]:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send)

    async def _predict(self, scope: Scope, receive: Receive, send: Send, use_case: str) -> None:
        arrived = time.perf_counter()
        headers = dict(scope["headers"])
        exchange = None
        request_id = request_id_from(headers.get(b"x-request-id"))
        try:
            if scope["method"] != "POST":
                raise HttpError(405, f"{scope['method']} is not allowed here; POST the texts")
            asked, texts = self._read_texts(await read_body(receive, headers, self._max_body))
            exchange = Exchange(
                use_case=use_case, request_id=request_id, subject=asked.subject or _subject(headers),
                payload=TextPayload(texts), path=f"/v2/models/{use_case}/infer",
                deadline=arrived + self._deadline_s, arrived=arrived, headers=headers,
            )  # fmt: skip
            scope[EXCHANGE] = exchange
            reply = await self._inference.run(exchange)
            if reply.status == OK:
                said = tuple(map(sys.intern, exchange.predictions().labels))  # the same few words, kept many times
                self._recent.add(request_id, RecentAnswer(use_case, len(texts), exchange.version, exchange.route, said))
                response: Response = (OK, [JSON], _predictions(exchange, asked.top_k))
            else:
                response = problem(reply.status, _reason(reply), request_id=request_id)
        except ClientGone:
            return
        except ValidationError as error:
            response = problem(422, _mistakes(error), request_id=request_id)
        except Exception as error:  # the boundary: whatever it is, the caller gets an answer
            response = problem_for(error, request_id)
            _log_fault(response[0], request_id)
        await self._send(send, response, request_id, exchange, arrived)

    async def _protocol(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        arrived = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = request_id_from(headers.get(b"x-request-id"))
        exchange = None
        try:
            parts = path.rstrip("/").split("/")
            if parts[-1] == "infer":
                exchange, response = await self._infer(scope, receive, headers, parts, request_id, arrived)
            else:
                response = await self._metadata(scope["method"], headers, parts, path)
        except ClientGone:
            return
        except Exception as error:  # the boundary: whatever it is, the caller gets an answer
            response = protocol_error(error)
            _log_fault(response[0], request_id)
        await self._send(send, response, request_id, exchange, arrived)

    async def _infer(
        self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], parts: list[str], request_id: str,
        arrived: float,
    ) -> tuple[Exchange, Response]:  # fmt: skip
        use_case, version = _model(parts[:-1])
        if scope["method"] != "POST":
            raise HttpError(405, f"{scope['method']} is not allowed here; POST the request")
        body = await read_body(receive, headers, self._max_body)
        passed = {name.decode(): value.decode("latin-1") for name, value in headers.items() if name in PASSED_ON}
        passed["x-request-id"] = request_id
        length = passed.get(HEAD_BYTES, "")
        head_bytes = int(length) if length.isdigit() else None
        refuse_deep(body[:head_bytes], self._max_depth)  # what follows the head are numbers and texts, not JSON
        payload = RawPayload(body, passed, head_bytes, self._max_body)
        exchange = Exchange(
            use_case=use_case, request_id=request_id, subject=_subject(headers), payload=payload,
            path="/".join(parts), deadline=arrived + self._deadline_s, wanted_version=version, arrived=arrived,
            headers=headers,
        )  # fmt: skip
        scope[EXCHANGE] = exchange
        try:
            reply = await self._inference.run(exchange)
        except Exception as error:  # the caller of this method needs the exchange too
            response = protocol_error(error)
            _log_fault(response[0], request_id)
            return exchange, response
        if reply.status == OK:
            self._recent.add(request_id, RecentAnswer(use_case, 0, exchange.version, exchange.route))
        return exchange, _as_it_came(reply)

    async def _metadata(self, method: str, headers: dict[bytes, bytes], parts: list[str], path: str) -> Response:
        if method not in ("GET", "HEAD"):
            raise HttpError(405, f"{method} is not allowed on {path}")
        rest = parts[2:]
        if rest == ["health", "live"]:
            return OK, [JSON], b'{"live":true}'
        if rest == ["health", "ready"]:
            ready = self.ready
            return (OK, [JSON], b'{"ready":true}') if ready else (503, [JSON], b'{"ready":false}')
        caller = await self._access.identify(headers)
        if not rest:
            return OK, [JSON], orjson.dumps(
                {"name": "leitstand-gateway", "version": __version__, "extensions": ["binary_tensor_data"]}
            )  # fmt: skip
        use_case, _ = _model(parts[:-1] if parts[-1] == "ready" else parts)
        self._access.permit(caller, use_case, "predict")
        _, reply = await self._inference.pass_on(use_case, "/".join(parts), self._deadline_s)
        return _as_it_came(reply)

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        audit_down = self._auditor.down if self._auditor else ""
        return self._inference.routes.seen and not self.draining and not audit_down

    def _read_texts(self, body: bytes) -> tuple[PredictRequest, list[str]]:
        refuse_deep(body, self._max_depth)
        asked = PredictRequest.model_validate_json(body)
        texts = [asked.text] if asked.text is not None else asked.texts or []
        if len(texts) > self._max_texts:
            raise HttpError(422, f"texts holds {len(texts)} texts, at most {self._max_texts} are accepted")
        return asked, texts

    async def _send(
        self, send: Send, response: Response, request_id: str, exchange: Exchange | None, arrived: float
    ) -> None:
        headers = response[1]
        headers.append((b"x-request-id", request_id.encode()))
        waited = 0.0
        if exchange is not None:
            headers += exchange.response_headers
        if exchange is not None and exchange.route:
            waited = exchange.upstream_s
            headers.append((b"x-leitstand-version", str(exchange.version).encode()))
            headers.append((b"x-leitstand-route", exchange.route.encode()))
        elif response[0] != OK:
            REFUSED.labels(str(response[0])).inc()
        overhead = (time.perf_counter() - arrived - waited) * 1000
        headers.append((b"x-leitstand-overhead-ms", b"%.3f" % overhead))
        if self.draining:
            headers.append((b"connection", b"close"))
        await respond(send, response)


def _model(parts: list[str]) -> tuple[str, int | None]:
    """Use case and version of ``/v2/models/NAME[/versions/N]``."""
    match parts[2:]:
        case ["models", name] if name:
            return name, None
        case ["models", name, "versions", version] if name and version.isdigit():
            return name, int(version)
    raise not_found(f"no such path: {'/'.join(parts)}")


def _as_it_came(reply: Reply) -> Response:
    headers = [(b"content-type", reply.content_type.encode("latin-1"))]
    if reply.head_bytes is not None:
        headers.append((HEAD_BYTES.encode(), str(reply.head_bytes).encode()))
    if reply.retry_after is not None:
        headers.append((b"retry-after", reply.retry_after.encode("latin-1")))
    return reply.status, headers, reply.body


def _predictions(exchange: Exchange, top_k: int) -> bytes:
    return orjson.dumps(
        {
            "request_id": exchange.request_id,
            "use_case": exchange.use_case,
            "version": exchange.version,
            "route": exchange.route,
            "predictions": predictions_of(exchange, top_k),
        }
    )


def _subject(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"x-subject", b"")[:256].decode("latin-1")


def _reason(reply: Reply) -> str:
    """What an upstream's error body says."""
    try:
        return str(orjson.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the model answered {reply.status}"


def _mistakes(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False)[:5]:
        place = ".".join(map(str, item["loc"]))
        lines.append(f"{place}: {item['msg']}" if place else item["msg"])
    return "; ".join(lines)


def _log_fault(status: int, request_id: str) -> None:
    if status == 500:  # noqa: PLR2004
        logger.exception("A request failed", **{"http.request.id": request_id, "trace.id": TRACE_ID.get()})
