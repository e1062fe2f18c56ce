"""Calls to upstreams over pooled keep-alive connections, with a deadline, and every failure named.

aiohttp: of the async clients tried it costs a tenth of httpx's CPU per call. Idle connections are given up
before uvicorn's five seconds are over, so a request seldom meets one that the server is closing.

A call is made once: what may be repeated, `services.protected_calls` repeats. Every call says in ``x-deadline-ms`` how
long its answer is waited for.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import aiohttp
import orjson
from yarl import URL

from governance.access.addresses import check_url
from leitstand.errors import ConfigurationError, TransientBackendError
from leitstand.types import Target, Usage
from services.openai_codec import Completion, Piece
from services.trace_context import TRACEPARENT
from services.upstream_addresses import CheckedResolver
from services.upstream_codec import ALWAYS, VECTORS

__all__ = ["DEADLINE", "HEAD_BYTES", "AnswerStream", "Chats", "Offer", "Reply", "UpstreamFailed", "Upstreams"]

IDLE_S = 4.0
ASK_AGAIN_S = 5.0
DESCRIBE_S = 1.0
CHAT_PATH = "/chat/completions"
MAX_ANSWER_BYTES = 16 * 2**20
HEAD_BYTES = "inference-header-content-length"
DEADLINE = "x-deadline-ms"


class UpstreamFailed(TransientBackendError):
    """No useful answer came.

    Args:
        message: What happened.
        reason: ``refused`` (never sent), ``disconnected``, ``timeout`` (504 as well), ``busy`` (503), ``error``
            (another 5xx), ``garbled`` (not readable), ``open`` (the breaker) or ``crowded`` (the bulkhead).
        retry_after_s: When the same call may succeed.
        repeatable: Whether the same upstream may be asked again at once, and could answer.
        alive: Whether the upstream works as it should all the same: it is busy and says so, or was not asked.
    """

    def __init__(
        self, message: str, reason: str, *, retry_after_s: float = 1.0, repeatable: bool = False, alive: bool = False
    ) -> None:
        super().__init__(message, hint="see `leitstand status` and the log of the Bento")
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.repeatable = repeatable
        self.alive = alive


class AnswerStream(Protocol):
    """An answer that is still being written; whoever holds it closes it."""

    target: Target

    def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        """Its parts until `deadline`, a `perf_counter` time. Raises `UpstreamFailed` when it breaks off."""
        ...

    def close(self) -> None:
        """Ends the connection, and with it the writing, unless it was read to its end."""
        ...


class Chats(Protocol):
    """Calls upstreams of kind ``openai`` (`services.chat_upstream`)."""

    async def once(
        self, session: aiohttp.ClientSession, target: Target, url: URL, body: bytes, headers: Mapping[str, str]
    ) -> "Reply":
        """The answer to one call."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """An upstream's answer, as it came; a chat's is read already, or a `stream` while it is being written."""

    status: int
    body: bytes
    content_type: str
    head_bytes: int | None = None
    retry_after: str | None = None
    usage: Usage | None = None
    completion: Completion | None = None
    stream: AnswerStream | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model says it can answer: the outputs to ask for, and its labels in their order, when it tells."""

    outputs: tuple[str, ...] = ALWAYS
    labels: tuple[str, ...] = ()
    asked_again_at: float = field(default=float("inf"), compare=False)


class Upstreams:
    """A pool for all targets. Open and close it on the event loop that uses it.

    Args:
        connect_s: Time to open a connection.
        vectors: Whether to ask for probabilities and embeddings where they are offered.
        chats: Who calls upstreams of kind ``openai``; None: nobody.
        context: Whose certificates are trusted, and which one is shown; None: the system's, and none.
        private: Whether upstreams may have private addresses.
        token: What Bentos want to see; nobody else gets it.
    """

    def __init__(
        self, *, connect_s: float = 1.0, vectors: bool = True, chats: Chats | None = None,
        context: ssl.SSLContext | None = None, private: bool = True, token: str = "",
    ) -> None:  # fmt: skip
        self._chats = chats
        self._context, self._private = context, private
        self._shown = {"authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        self._vectors = VECTORS if vectors else ("probabilities",)
        self._offers: dict[Target, Offer] = {}
        self._describing: dict[Target, asyncio.Task[Offer]] = {}
        self._urls: dict[tuple[str, str], URL] = {}
        self._opened: aiohttp.ClientSession | None = None
        self.trace_configs: list[aiohttp.TraceConfig] = []

    async def open(self) -> None:
        """Makes the pool; connections are opened when first needed."""
        checked = CheckedResolver(private=self._private)
        self._opened = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_S, ssl=self._context or True, resolver=checked
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            trace_configs=self.trace_configs,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    async def close(self) -> None:
        """Closes every connection."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def call(
        self, target: Target, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> Reply:
        """POSTs `body` (GETs without one) and returns whatever status is answered.

        Raises:
            UpstreamFailed: Nothing was answered within `timeout_s`.
            ConfigurationError: The target does not speak what the path asks for.
        """
        if (target.kind == "openai") != (path == CHAT_PATH):
            wanted = "use POST /v1/{use_case}/predict" if target.kind == "v2" else "use POST /v1/chat/completions"
            raise ConfigurationError(f"The upstream speaks {target.kind}", hint=wanted)
        url = self._url(target.url, path)
        headers = {**headers, DEADLINE: str(int(timeout_s * 1000) + 1)}
        if target.kind == "v2":
            headers |= self._shown
            if traceparent := TRACEPARENT.get():
                headers["traceparent"] = traceparent
        try:
            async with asyncio.timeout(timeout_s):
                return await self._once(target, url, body, headers)
        except TimeoutError as error:  # aiohttp's are among them: one to connect counts as never sent
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UpstreamFailed(f"{target.url} took no connection", "refused", repeatable=True) from error
            raise UpstreamFailed(f"{target.url} did not answer within {timeout_s:.2f} s", "timeout") from error
        except aiohttp.ClientConnectorError as error:
            said = f"{target.url} takes no connections: {error}"
            raise UpstreamFailed(said, "refused", repeatable=True) from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamFailed(f"{target.url} does not speak HTTP: {error.message}", "garbled") from error
        except aiohttp.ClientError as error:
            said = f"{target.url} broke the connection: {error!r}"
            begun = not isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            raise UpstreamFailed(said, "disconnected", repeatable=not begun) from error

    async def ask(self, target: Target, path: str, timeout_s: float) -> Reply:
        """GETs `path`, once more when a kept-alive connection broke meanwhile.

        Raises:
            UpstreamFailed: As `call`.
        """
        try:
            return await self.call(target, path, None, {}, timeout_s)
        except UpstreamFailed as error:
            if error.reason != "disconnected":
                raise
        return await self.call(target, path, None, {}, timeout_s)

    async def describe(self, target: Target, use_case: str, wait_s: float = DESCRIBE_S) -> Offer:
        """The target's offer, asked for once; a target that does not tell is asked again five seconds later.

        After `wait_s` the least that every model offers is returned; the question goes on.
        """
        if target.kind == "openai":
            return Offer()
        offer = self._offers.get(target)
        if offer is not None and monotonic() < offer.asked_again_at:
            return offer
        task = self._describing.get(target)
        if task is None:
            task = self._describing[target] = asyncio.create_task(self._describe(target, use_case))
            task.add_done_callback(lambda _: self._describing.pop(target, None))
        await asyncio.wait((task,), timeout=wait_s)
        return task.result() if task.done() else Offer()

    async def _describe(self, target: Target, use_case: str) -> Offer:
        try:
            reply = await self.ask(target, f"/v2/models/{use_case}", DESCRIBE_S)
            offer = _read_offer(orjson.loads(reply.body), self._vectors)
        except (UpstreamFailed, ValueError, TypeError, KeyError, AttributeError):
            offer = Offer(asked_again_at=monotonic() + ASK_AGAIN_S)
        self._offers[target] = offer
        return offer

    async def _once(self, target: Target, url: URL, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        session = self._opened
        if session is None:
            raise UpstreamFailed("the gateway is shutting down", "refused")
        if target.kind == "openai" and self._chats is not None and body is not None:
            return await self._chats.once(session, target, url, body, headers)
        method = "GET" if body is None else "POST"
        async with session.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
            content = await _read(response)
        got = response.headers
        length = got.get(HEAD_BYTES)
        return Reply(
            status=response.status,
            body=content,
            content_type=got.get("content-type", "application/octet-stream"),
            head_bytes=int(length) if length and length.isdigit() else None,
            retry_after=got.get("retry-after"),
        )

    def _url(self, base: str, path: str) -> URL:
        """Parsed once: it would cost as much as the rest of the call's preparation."""
        url = self._urls.get((base, path))
        if url is None:
            try:
                check_url(base, private=self._private)
            except ConfigurationError as error:  # the table's mistake, not the caller's
                raise UpstreamFailed(error.message, "refused") from error
            if len(self._urls) > 1000:  # noqa: PLR2004 -- paths come from clients
                self._urls.clear()
            url = self._urls[base, path] = URL(f"{base.rstrip('/')}{path}", encoded=True)
        return url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is one that fits: an answer without an end must not fill the memory."""
    length = response.content_length
    if length is not None and length <= MAX_ANSWER_BYTES:
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamFailed(f"the answer has more than {MAX_ANSWER_BYTES} bytes", "garbled")
        parts.append(part)
    return b"".join(parts)


def _read_offer(document: dict, vectors: tuple[str, ...]) -> Offer:
    """The model's metadata; labels stand in the parameters of the model or of one of its outputs."""
    outputs = document["outputs"]
    names = {output["name"] for output in outputs}
    parameters = [document.get("parameters") or {}, *(output.get("parameters") or {} for output in outputs)]
    labels = next((each["labels"] for each in parameters if "labels" in each), ())
    return Offer((*ALWAYS, *(name for name in vectors if name in names)), tuple(map(str, labels)))
