"""Calls of OpenAI-compatible APIs: the key goes only where it belongs, and what comes back is checked.

What a provider answers, and what becomes of it:

    200                        a completion, or the events of one; anything else is ``garbled``
    400, 413, 422              the caller's mistake: passed on
    429                        ``busy``, with the provider's Retry-After: its quota is our capacity
    408                        ``timeout``
    401, 403, 404, 3xx, other  ``error``: our key, model name or address is wrong, not the caller's request
    5xx                        passed on to whoever asked, who counts it as a failure
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import perf_counter
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

from leitstand.errors import PermanentBackendError
from leitstand.settings import ChatSettings
from leitstand.sse import EventReader
from leitstand.types import Target
from services.chat_payload import EVENT_STREAM, whole
from services.openai_codec import (
    Completion,
    Piece,
    UpstreamReports,
    error_text,
    read_chunk,
    read_completion,
)
from services.upstreams import Reply, UpstreamFailed

__all__ = ["ChatCalls", "ChatStream", "cut"]

OK, TOO_MANY, TIMED_OUT, SERVER_ERROR = 200, 429, 408, 500
CALLERS_MISTAKE = (400, 413, 422)
AGENT = {"user-agent": "leitstand"}  # some providers turn away clients that do not say who they are
SENT = ("content-type", "accept", "x-request-id", "traceparent", "tracestate")
LINGER_S = 2.0
MAX_RETRY_AFTER_S = 86_400.0


class ChatCalls:
    """Makes calls on a session that `services.upstreams` owns.

    Args:
        settings: Keys, and how long and how much to read.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings

    async def once(
        self, session: aiohttp.ClientSession, target: Target, url: URL, body: bytes, headers: Mapping[str, str]
    ) -> Reply:
        """The answer to one call. A stream is returned when its first piece came; whoever gets it closes it.

        Raises:
            UpstreamFailed: No useful answer came.
        """
        sent = {name: value for name, value in headers.items() if name in SENT} | AGENT | self._credentials(target)
        named = b'{"model":' + orjson.dumps(target.model) + b"," + body[1:]
        response = await session.post(url, data=named, headers=sent, allow_redirects=False)
        try:
            reply = await self._read(target, response, streams=headers.get("accept") == EVENT_STREAM)
        except BaseException:
            response.close()
            raise
        if reply.stream is None:
            response.release()
        return reply

    def _credentials(self, target: Target) -> dict[str, str]:
        if not target.key:
            return {}
        key = self._settings.keys.get(target.key)
        if key is None or _origin(key.url) != _origin(target.url):
            problem = "is not set" if key is None else "belongs to another address"
            raise UpstreamFailed(f"The key '{target.key}' of version {target.version} {problem}", "error")
        return {"authorization": f"Bearer {key.value.get_secret_value()}"}

    async def _read(self, target: Target, response: aiohttp.ClientResponse, *, streams: bool) -> Reply:
        if response.status != OK:
            return await _refusal(target, response)
        if streams:
            if response.content_type != EVENT_STREAM:
                raise UpstreamFailed(f"{target.url} does not stream", "garbled")
            stream = ChatStream(target, response, self._settings)
            await stream.begin()
            return Reply(OK, b"", EVENT_STREAM, stream=stream)
        limit = self._settings.max_answer_bytes
        try:
            completion = cut(read_completion(await _bounded(response, 4 * limit + 2**16)), limit)
        except PermanentBackendError as error:
            raise UpstreamFailed(f"{target.url}: {error.message}", "garbled") from error
        return whole(completion)


class ChatStream:
    """An answer that is being written. One reader; close it whatever happens.

    Args:
        target: Who writes.
        response: The open response.
        settings: How long and how much to read.
    """

    def __init__(self, target: Target, response: aiohttp.ClientResponse, settings: ChatSettings) -> None:
        self.target = target
        self._response = response
        self._settings = settings
        self._events = EventReader()
        self._first: list[Piece] = []
        self._over = False
        self._failure: UpstreamFailed | None = None

    async def begin(self) -> None:
        """Waits for the first pieces."""
        while not self._first and not self._over:
            self._first = await self._next(None)
        if not self._first:
            raise UpstreamFailed(f"{self.target.url} ended before it answered", "disconnected")

    async def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        """The pieces up to the last one, which names the finish reason or comes after the one that does.

        Args:
            deadline: `perf_counter` time at which the caller has waited enough.

        Raises:
            UpstreamFailed: It broke off, hung, or said what is not readable.
        """
        finished, size, pieces = False, 0, self._first
        while True:
            for piece in pieces:
                size += len(piece.text.encode("utf-8", "surrogatepass"))
                if size > self._settings.max_answer_bytes:
                    yield Piece(finish_reason="length")
                    return
                finished = finished or bool(piece.finish_reason)
                yield piece
            if self._over:
                break
            try:
                left = min(self._settings.idle_s, deadline - perf_counter())
                pieces = await self._next(min(left, LINGER_S) if finished else left)
            except UpstreamFailed:
                if finished:  # it is complete; only its counts or its end mark are missing
                    return
                raise
        if not finished:
            raise UpstreamFailed(f"{self.target.url} broke off in the middle of its answer", "disconnected")

    def close(self) -> None:
        """Gives the connection back when the answer was read to its end; otherwise ends it, and so the writing."""
        if self._over:
            self._response.release()
        else:
            self._response.close()

    async def _next(self, wait_s: float | None) -> list[Piece]:
        """What the next bytes complete; may be empty."""
        if self._failure is not None:
            raise self._failure
        try:
            async with asyncio.timeout(wait_s):
                raw = await self._response.content.readany()
        except TimeoutError as error:
            raise UpstreamFailed(f"{self.target.url} wrote nothing for {wait_s:.1f} s", "timeout") from error
        except aiohttp.ClientError as error:
            raise UpstreamFailed(f"{self.target.url} broke off: {error!r}", "disconnected") from error
        if not raw:
            self._over = True
            return []
        pieces: list[Piece] = []
        try:
            for event in self._events.feed(raw):
                if event.data == "[DONE]":
                    self._over = True
                    break
                pieces.append(read_chunk(event.data))
        except PermanentBackendError as error:
            reason = "error" if isinstance(error, UpstreamReports) else "garbled"
            failure = UpstreamFailed(f"{self.target.url}: {error.message}", reason)
            if not pieces:
                raise failure from error
            self._failure = failure  # what came before it counts
        return pieces


def cut(completion: Completion, limit: int) -> Completion:
    """At most `limit` bytes of text; a cut one ended because of its length."""
    raw = completion.text.encode("utf-8", "surrogatepass")
    if len(raw) <= limit:
        return completion
    return Completion(raw[:limit].decode("utf-8", "ignore"), "length", completion.usage, completion.notes)


async def _refusal(target: Target, response: aiohttp.ClientResponse) -> Reply:
    status, body = response.status, await _bounded(response, 2**16)
    retry_after_s = _retry_after_s(response.headers)
    if status == TOO_MANY:
        raise UpstreamFailed(
            f"{target.url} has no quota left", "busy", retry_after_s=1.0 if retry_after_s is None else retry_after_s,
            alive=True,
        )  # fmt: skip
    if status == TIMED_OUT:
        raise UpstreamFailed(f"{target.url} answered {status}", "timeout")
    if status not in CALLERS_MISTAKE and status < SERVER_ERROR:
        raise UpstreamFailed(f"{target.url} answered {status} to the gateway's key, model or address", "error")
    after = None if retry_after_s is None else str(math.ceil(retry_after_s))
    return Reply(status, error_text(body).encode(), "text/plain", retry_after=after)


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise UpstreamFailed(f"the answer has more than {limit} bytes", "garbled")
        parts.append(part)
    return b"".join(parts)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds, by number or date (RFC 9110, section 10.2.3), or in the milliseconds that OpenAI adds."""
    said, fine = headers.get("retry-after", ""), headers.get("retry-after-ms", "")
    try:
        seconds = float(fine) / 1000 if fine else float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default
