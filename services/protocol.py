"""``/v2`` over HTTP as a bare ASGI application, and the middleware that puts it in front of BentoML's.

Every request of the hot path passes here only: no routing table, no request object, no model validation
library, no tracing. `FrontDoor` is installed as a middleware of the Bento; at start it moves itself to the
outside of the stack, because BentoML's own layers cost more than the whole protocol.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import orjson

from leitstand import __version__
from models.bento_manifest import ServingManifest
from services.batching import Answer, Batcher
from services.bento_access import BentoAccess
from services.bento_log import BentoLog
from services.errors import JSON, HttpError, Response, bad_request, error_response, not_found, too_large
from services.inference_protocol import DATATYPES, decode_request, encode_response
from services.metrics import LATENCY, REQUESTS, SHED
from services.request_ids import request_id_from
from services.scheduling import Overloaded

__all__ = ["FrontDoor", "Protocol"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LONG_TEXT = 4096  # characters; longer ones are tokenised off the event loop
WATCH_AFTER_S = 0.25  # a client is watched for going away only when it will wait longer than this
BODY_SLACK = 64 * 1024
MAX_DIGITS = 18

logger = logging.getLogger("leitstand.serving")


class Protocol:
    """Answers ``/v2``. `open` is called once the batcher is warm; before that every model is unready."""

    def __init__(self) -> None:
        self._batcher: Batcher | None = None
        self._manifest: ServingManifest | None = None
        self._routes: dict[str, Callable[[], Response]] = {}
        self._infer_paths: frozenset[str] = frozenset()
        self._max_body = 0
        self._log: BentoLog | None = None
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm."""
        return self._batcher is not None and not self._draining

    def open(self, batcher: Batcher, manifest: ServingManifest, log: BentoLog | None = None) -> None:
        """Starts to answer, and to log when there is a `log`."""
        self._log = log
        base = f"/v2/models/{manifest.use_case}"
        bases = (base, f"{base}/versions/{manifest.version}")
        metadata = orjson.dumps(_metadata(manifest, batcher.classifier.config.labels))
        ready = orjson.dumps({"name": manifest.use_case, "ready": True})
        self._infer_paths = frozenset(f"{path}/infer" for path in bases)
        for path in bases:
            self._routes[path] = lambda: (200, [JSON], metadata)
            self._routes[f"{path}/ready"] = lambda: (200, [JSON], ready)
        # Every text escaped as \uXXXX is six times as long; one request may hold a full batch of short ones.
        self._max_body = 6 * manifest.max_text_bytes + BODY_SLACK
        self._manifest = manifest
        self._batcher = batcher

    def drain(self) -> None:
        """Reports unready from now on, and closes each connection with its answer; requests are still answered."""
        self._draining = True

    def close(self) -> None:
        """Stops to answer; running batches finish."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            batcher.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request below ``/v2``."""
        path = scope["path"]
        if path in self._infer_paths:
            await self._infer(scope, receive, send)
        else:
            try:
                response = self._answer(scope["method"], path.rstrip("/"))
            except HttpError as error:
                response = error_response(error)
            await _send(send, response)

    def _answer(self, method: str, path: str) -> Response:
        if method not in ("GET", "HEAD"):
            raise HttpError(405, f"{method} is not allowed on {path}") if path in self._routes else self._missing(path)
        if path == "/v2":
            return (
                200,
                [JSON],
                orjson.dumps({"name": "leitstand", "version": __version__, "extensions": ["binary_tensor_data"]}),
            )
        if path == "/v2/health/live":
            return 200, [JSON], b'{"live":true}'
        if path == "/v2/health/ready":
            return (200, [JSON], b'{"ready":true}') if self.ready else (503, [JSON], b'{"ready":false}')
        handler = self._routes.get(path)
        if handler is not None and self._draining and path.endswith("/ready"):
            raise HttpError(503, "the server is shutting down")
        if handler is None:
            raise self._missing(path)
        return handler()

    def _missing(self, path: str) -> HttpError:
        parts = path.split("/")
        served = self._manifest
        if served is None:
            return HttpError(503, "the model is not ready")
        if parts[2:3] == ["models"] and len(parts) > 3:  # noqa: PLR2004
            if parts[3] != served.use_case:
                return not_found(f"unknown model '{parts[3]}'; this server has '{served.use_case}'")
            if parts[4:5] == ["versions"] and parts[5:6] != [str(served.version)]:
                return not_found(f"unknown version '{''.join(parts[5:6])}'; this server has {served.version}")
        return not_found(f"no such path: {path}")

    async def _infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        try:
            response = await self._classify(scope, receive, start)
        except asyncio.CancelledError:
            raise
        except _Gone:
            REQUESTS.labels("499").inc()
            return
        except Exception as error:  # the boundary: whatever it is, the client gets an answer
            response = error_response(error)
            if response[0] == 500:  # noqa: PLR2004
                logger.exception("inference failed")
            if response[0] == 503:  # noqa: PLR2004
                SHED.labels("overload").inc()
            REQUESTS.labels(str(response[0])).inc()
        else:
            REQUESTS.labels("200").inc()
            LATENCY.observe(time.perf_counter() - start)
        if self._draining:
            response[1].append((b"connection", b"close"))
        await _send(send, response)

    async def _classify(self, scope: Scope, receive: Receive, started: float) -> Response:
        batcher, manifest = self._batcher, self._manifest
        if scope["method"] != "POST":
            raise HttpError(405, f"{scope['method']} is not allowed; POST the request")
        if batcher is None or manifest is None:
            raise Overloaded("the model is not ready", 1.0)
        refused = batcher.scheduler.refusal()
        if refused is not None:
            raise refused
        json_bytes = length = given_ms = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = _number(name, value)
            elif name == b"inference-header-content-length":
                json_bytes = _number(name, value)
            elif name == b"x-deadline-ms":
                given_ms = _number(name, value)
            elif name == b"content-encoding" and value != b"identity":
                raise HttpError(415, "compressed bodies are not accepted")
        if length is not None and length > self._max_body:
            raise too_large(f"the body has {length} bytes, at most {self._max_body} are accepted")
        body = await _read(receive, self._max_body)
        request = decode_request(body, json_bytes, manifest.max_text_bytes)
        ids = await self._encode(batcher, request.texts)
        log = self._log
        within_s = math.inf if given_ms is None else given_ms / 1000 - (time.perf_counter() - started)
        with_embedding = log is not None or "embedding" in request.outputs
        answers = await _watched(batcher, ids, receive, embedding=with_embedding, within_s=within_s)
        content, head = encode_response(manifest.use_case, str(manifest.version), request, answers)
        headers = [JSON]
        if head is not None:
            size = str(head).encode()
            headers = [(b"content-type", b"application/octet-stream"), (b"inference-header-content-length", size)]
        if log is not None:
            header = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
            name = request_id_from(header or (request.request_id or "").encode())
            log.record(name, request.texts, ids, answers, started)
            headers.append((b"x-request-id", name.encode()))
        return 200, headers, content

    async def _encode(self, batcher: Batcher, texts: list[str]) -> list[list[int]]:
        if len(texts) > 16 or max(map(len, texts)) > LONG_TEXT:  # noqa: PLR2004
            return await asyncio.to_thread(batcher.classifier.encode, texts)
        return batcher.classifier.encode(texts)


class FrontDoor:
    """Middleware that answers ``/v2`` itself and passes everything else on."""

    def __init__(self, app: App, protocol: Protocol, access: BentoAccess | None = None) -> None:
        self.app = app
        self.protocol = protocol
        self.access = access or BentoAccess()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the lifespan on after moving to the outside of the stack."""
        if scope["type"] == "http":
            path = scope["path"]
            refusal = self.access.refusal(scope)
            if refusal is not None:
                await _send(send, refusal)
                return
            if path.startswith("/v2"):
                await self.protocol(scope, receive, send)
                return
            if path == "/readyz" and not self.protocol.ready:
                await _send(send, (503, [JSON], b'{"ready":false}'))
                return
        if scope["type"] == "lifespan":
            owner = scope.get("app")
            stack = getattr(owner, "middleware_stack", None)
            if owner is not None and stack is not None and not isinstance(stack, FrontDoor):
                owner.middleware_stack = FrontDoor(stack, self.protocol, self.access)
        await self.app(scope, receive, send)


class _Gone(Exception):
    """The client closed the connection."""


async def _watched(
    batcher: Batcher, ids: list[list[int]], receive: Receive, *, embedding: bool, within_s: float
) -> list[Answer]:
    """Classifies; when the wait will be long, gives up as soon as the client goes away."""
    if batcher.scheduler.wait_s() < WATCH_AFTER_S:
        return await batcher.classify(ids, embedding=embedding, within_s=within_s)
    answer = asyncio.ensure_future(batcher.classify(ids, embedding=embedding, within_s=within_s))
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise _Gone
    finally:
        for task in (answer, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _read(receive: Receive, limit: int) -> bytes:
    """The body; a larger one than `limit` is refused without keeping it."""
    message = await receive()
    body = message.get("body", b"")
    if not message.get("more_body") and len(body) <= limit:
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        if size > limit:
            raise too_large(f"the body has more than {limit} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    if size > limit:
        raise too_large(f"the body has more than {limit} bytes")
    return b"".join(parts)


async def _send(send: Send, response: Response) -> None:
    status, headers, body = response
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _number(name: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise bad_request(f"{name.decode()} is not a number")
    return int(value)


def _metadata(manifest: ServingManifest, labels: Sequence[str]) -> dict[str, Any]:
    """The labels stand at `probabilities`, in the order of its columns: clients need them to read it."""
    shapes = {"probabilities": [-1, len(labels)], "embedding": [-1, -1]}
    outputs: list[dict[str, Any]] = [
        {"name": name, "datatype": DATATYPES[name], "shape": shapes.get(name, [-1])} for name in DATATYPES
    ]
    for output in outputs:
        if output["name"] == "probabilities":
            output["parameters"] = {"labels": list(labels)}
    return {
        "name": manifest.use_case,
        "versions": [str(manifest.version)],
        "platform": f"leitstand_{manifest.engine}",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
    }
