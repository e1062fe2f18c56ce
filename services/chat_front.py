"""The OpenAI-compatible API of the gateway.

    POST /v1/chat/completions      `model` is a use case, or USE_CASE@VERSION; with or without ``stream``
    GET  /v1/models[/{model}]      the use cases that chat and that the caller may ask

A caller who goes away ends the work: the upstream's connection is closed, what was used until then is settled and
recorded. Errors have OpenAI's shape. A stream that cannot go on ends with an error event instead of ``[DONE]``; one
that a guard ends has the finish reason ``content_filter`` and names the reasons in `leitstand`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
import structlog

from leitstand.errors import ContentBlocked, LeitstandError, NotFoundError
from services.asgi import EXCHANGE, ClientGone, read_body, respond
from services.chat_payload import BadChatRequest, ChatPayload, make_payload, read_chat_request
from services.errors import JSON, HttpError, Response
from services.exchange import CHAT_NOTES, Exchange
from services.gateway_metrics import REFUSED
from services.gateway_wiring import Gateway
from services.guarding import PROMPTS
from services.json_depth import refuse_deep
from services.openai_codec import DONE, Piece, chunk_bytes, completion_bytes, error_bytes, usage_document
from services.openai_errors import openai_error, openai_refusal, stream_error
from services.recent import RecentAnswer
from services.request_ids import request_id_from
from services.trace_context import TRACE_ID
from services.upstreams import CHAT_PATH, UpstreamFailed

__all__ = ["ChatFront"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")

OK, SERVER_ERROR = 200, 500
COST = b"x-leitstand-cost"
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no")]  # fmt: skip

logger = structlog.get_logger()


class ChatFront:
    """Answers the paths above.

    Args:
        gateway: The parts it answers with, and its limits.
        closing: Whether each answer shall close its connection.
    """

    def __init__(self, gateway: Gateway, closing: Callable[[], bool] = lambda: False) -> None:
        self._inference = gateway.inference
        self._recent = gateway.recent
        self._access = gateway.access
        self._rules = gateway.chat
        self._limits = gateway.settings
        self._closing = closing

    def answers(self, path: str) -> bool:
        """Whether the path is one of these."""
        return path in ("/v1/chat/completions", "/v1/models") or path.startswith("/v1/models/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        answer = _Answer(scope, send, self._closing)
        try:
            if scope["path"] != "/v1/chat/completions":
                response = await self._models(scope, answer)
            else:
                response = await self._chat(scope, receive, answer)
        except ClientGone:
            return
        except Exception as error:  # the boundary: whatever it is, the caller gets an answer
            response = openai_error(error, answer.request_id)
            if response[0] == SERVER_ERROR:
                logger.exception(
                    "A request failed", **{"http.request.id": answer.request_id, "trace.id": TRACE_ID.get()}
                )
        if response is not None:
            await answer.whole(response)

    async def _chat(self, scope: Scope, receive: Receive, answer: "_Answer") -> Response | None:
        if scope["method"] != "POST":
            raise HttpError(405, f"{scope['method']} is not allowed here; POST a chat")
        body = await read_body(receive, answer.headers, self._limits.max_body_bytes)
        refuse_deep(body, self._limits.max_json_depth)
        exchange = answer.exchange = scope[EXCHANGE] = self._exchange(body, answer)
        payload = exchange.payload
        assert isinstance(payload, ChatPayload)  # noqa: S101 -- `_exchange` makes it
        if payload.stream:
            buffered = self._rules.specs(exchange.use_case)[0].stream == "buffered"
            response = await _listened(receive, self._streamed(exchange, payload, answer, buffered=buffered))
        else:
            response = await _listened(receive, self._completed(exchange))
        if exchange.error is None and exchange.reply is not None and exchange.reply.status == OK:
            self._recent.add(
                exchange.request_id, RecentAnswer(exchange.use_case, 1, exchange.version, exchange.route)
            )  # fmt: skip
        return response

    def _exchange(self, body: bytes, answer: "_Answer") -> Exchange:
        request = read_chat_request(body)
        use_case, separator, version = request.model.partition("@")
        if separator and not (version.isdecimal() and len(version) < 10):  # noqa: PLR2004
            raise BadChatRequest("model is USE_CASE or USE_CASE@VERSION", "model")
        spec, default_max_tokens = self._rules.specs(use_case)
        payload = make_payload(request, spec, default_max_tokens, self._limits.max_texts)
        prompts = payload.prompts()
        return Exchange(
            use_case=use_case, request_id=answer.request_id,
            subject=request.user or answer.headers.get(b"x-subject", b"")[:256].decode("latin-1"), payload=payload,
            path=CHAT_PATH, deadline=answer.arrived + self._rules.settings.deadline_s,
            wanted_version=int(version) if separator else None, arrived=answer.arrived, headers=answer.headers,
            usage=payload.estimate(), notes={PROMPTS: prompts} if prompts else {},
        )  # fmt: skip

    async def _completed(self, exchange: Exchange) -> Response:
        reply = await self._inference.run(exchange)
        if reply.completion is None:
            return openai_refusal(reply.status, reply.body.decode("utf-8", "replace"), exchange.request_id)
        body = completion_bytes(
            reply.completion, request_id=exchange.request_id, model=f"{exchange.use_case}@{exchange.version}",
            created=int(time.time()), usage=exchange.usage,
        )  # fmt: skip
        counted = exchange.notes[CHAT_NOTES]["tokens"].encode()
        return OK, [JSON, (b"x-leitstand-tokens", counted)], body

    async def _streamed(
        self, exchange: Exchange, payload: ChatPayload, answer: "_Answer", *, buffered: bool
    ) -> Response | None:  # fmt: skip
        """Sends the stream; or returns the response of a request that was answered without one."""
        try:
            async with aclosing(self._inference.stream(exchange, buffered=buffered)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if piece.finish_reason:
                        await answer.end(piece.finish_reason, counts=payload.include_usage)
                    else:
                        await answer.piece(piece)
        except Exception as error:
            if not answer.begun:
                raise
            await answer.broken(error, counts=payload.include_usage)
            return None
        if answer.begun:
            return None
        reply = exchange.reply
        assert reply is not None  # noqa: S101 -- without a piece there is a refusal
        return openai_refusal(reply.status, reply.body.decode("utf-8", "replace"), exchange.request_id)

    async def _models(self, scope: Scope, answer: "_Answer") -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpError(405, f"{scope['method']} is not allowed here")
        caller = await self._access.identify(answer.headers)
        names = []
        for name in self._inference.routes.names():
            table = self._inference.routes.table(name)
            if table is None or table.stable.kind != "openai":
                continue
            try:
                self._access.permit(caller, name, "predict")
            except LeitstandError:
                continue
            names.append(name)
        documents = {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "leitstand"} for name in sorted(names)
        }
        wanted = scope["path"].removeprefix("/v1/models").strip("/")
        if not wanted:
            return OK, [JSON], orjson.dumps({"object": "list", "data": list(documents.values())})
        if wanted not in documents:
            raise NotFoundError(f"No use case '{wanted}' that chats", hint="GET /v1/models lists those there are")
        return OK, [JSON], orjson.dumps(documents[wanted])


class _Answer:
    """What is sent for one request: a response, or a stream piece by piece."""

    def __init__(self, scope: Scope, send: Send, closing: Callable[[], bool]) -> None:
        self.arrived = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_from(self.headers.get(b"x-request-id"))
        self.exchange: Exchange | None = None
        self.begun = False
        self._send = send
        self._closing = closing
        self._head: dict[str, Any] = {}

    async def whole(self, response: Response) -> None:
        status, headers, body = response
        if status != OK and not (self.exchange and self.exchange.route):
            REFUSED.labels(str(status)).inc()
        await respond(self._send, (status, [*headers, *self._about()], body))

    async def piece(self, piece: Piece) -> None:
        if self.begun:
            await self._event(chunk_bytes({"content": piece.text}, head=self._head))
        else:
            await self._begin()
            await self._event(chunk_bytes({"role": "assistant", "content": piece.text}, head=self._head))

    async def end(self, reason: str, *, counts: bool, blocked: list[str] | None = None) -> None:
        """The last chunk, which also tells what the headers could not know yet; the counts; the end mark."""
        if not self.begun:
            await self._begin()
        exchange = self.exchange
        assert exchange is not None  # noqa: S101 -- a stream belongs to one
        about = {"request_id": self.request_id, "tokens": exchange.notes.get(CHAT_NOTES, {}).get("tokens", "")}
        cost = next((value.decode() for name, value in exchange.response_headers if name == COST), None)
        about |= ({"cost": cost} if cost else {}) | ({"blocked": blocked} if blocked is not None else {})
        last = chunk_bytes({}, head=self._head, finish_reason=reason, leitstand=about)
        if counts:
            last += chunk_bytes(None, head=self._head, usage=usage_document(exchange.usage))
        await self._event(last + DONE, more=False)

    async def broken(self, error: Exception, *, counts: bool) -> None:
        if isinstance(error, ContentBlocked):
            await self.end("content_filter", counts=counts, blocked=list(error.reasons))
            return
        if not isinstance(error, LeitstandError):
            logger.error("A stream failed", exc_info=error, **{"http.request.id": self.request_id})
        elif isinstance(error, UpstreamFailed):
            logger.warning("A stream broke off", **{"http.request.id": self.request_id, "error.message": error.message})
        await self._event(error_bytes(stream_error(error, self.request_id)), more=False)

    async def _begin(self) -> None:
        exchange = self.exchange
        assert exchange is not None  # noqa: S101 -- pieces belong to one
        self.begun = True
        self._head = {
            "id": self.request_id, "object": "chat.completion.chunk", "created": int(time.time()),
            "model": f"{exchange.use_case}@{exchange.version}",
        }  # fmt: skip
        headers = [*STREAM_HEADERS, *self._about()]
        await self._send({"type": "http.response.start", "status": OK, "headers": headers})

    async def _event(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _about(self) -> Headers:
        headers: Headers = [(b"x-request-id", self.request_id.encode())]
        waited, exchange = 0.0, self.exchange
        if exchange is not None:
            headers += exchange.response_headers
            if exchange.route:
                waited = exchange.upstream_s
                headers.append((b"x-leitstand-version", str(exchange.version).encode()))
                headers.append((b"x-leitstand-route", exchange.route.encode()))
        overhead = (time.perf_counter() - self.arrived - waited) * 1000
        headers.append((b"x-leitstand-overhead-ms", b"%.3f" % overhead))
        if self._closing():
            headers.append((b"connection", b"close"))
        return headers


async def _listened(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGone: It went.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.warning("A request ended with its caller", **{"error.message": str(error)[:300]})
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
