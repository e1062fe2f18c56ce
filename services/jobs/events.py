"""A job's progress as server-sent events (WHATWG HTML, section 9.2).

The id of an event is its place in the job's stream in Redis, so any gateway can resume after `Last-Event-ID`. What was
seen and has fallen out of the stream is not missed: each event says where the job stands, not what changed.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from time import monotonic

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from leitstand.errors import LeitstandError
from services.jobs.queue import JobQueue
from services.jobs.records import Event, JobStatus
from services.scheduling import Overloaded

__all__ = ["EventResponse", "EventStreams", "formatted"]

EVENT_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
POLL_S = 0.25
HEARTBEAT_S = 10.0
HEARTBEAT = b": still here\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventResponse(StreamingResponse):
    """A stream of events."""

    media_type = "text/event-stream"


class EventStreams:
    """The streams of one gateway.

    Args:
        limit: Streams at once; more are refused.
        draining: Ends all streams when it says so; clients come back to another gateway by themselves.
        heartbeat_s: Silence after which a comment is sent, so that nobody in between gives the connection up.
    """

    def __init__(self, limit: int, draining: Callable[[], bool], heartbeat_s: float = HEARTBEAT_S) -> None:
        self._limit = limit
        self._draining = draining
        self._heartbeat_s = heartbeat_s
        self._open = 0

    async def respond(self, queue: JobQueue, status: JobStatus, last_seen: str) -> Response:
        """What happened after the event `last_seen`, and what happens from now on until the job ends.

        An ended job without anything new is answered 204, which tells a browser not to come back.

        Raises:
            Overloaded: Too many streams are open.
        """
        after = last_seen if EVENT_ID.fullmatch(last_seen) else "0"
        if status.ended and not await queue.events(status.id, after):
            return Response(status_code=204)
        if self._open >= self._limit:
            raise Overloaded(f"{self._open} event streams are open", 5.0)
        return EventResponse(self._stream(queue, status.id, after), 200, HEADERS)

    async def _stream(self, queue: JobQueue, job_id: str, after: str) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            spoke = monotonic()
            while not self._draining():
                events = await _read(queue, job_id, after)
                if events:
                    yield b"".join(map(formatted, events))
                    after, spoke = events[-1].id, monotonic()
                    if events[-1].last:
                        return
                elif monotonic() - spoke >= self._heartbeat_s:
                    yield HEARTBEAT
                    spoke = monotonic()
                await asyncio.sleep(POLL_S)
        finally:
            self._open -= 1


def formatted(event: Event) -> bytes:
    """The event as the wire wants it; its type is ``end`` for the last one, else ``progress``."""
    said = {
        "state": event.state, "texts": event.texts, "texts_done": event.texts_done, "attempts": event.attempts,
    }  # fmt: skip
    kind = "end" if event.last else "progress"
    return f"id: {event.id}\nevent: {kind}\ndata: ".encode() + orjson.dumps(said) + b"\n\n"


async def _read(queue: JobQueue, job_id: str, after: str) -> list[Event]:
    """Nothing while Redis is away: the stream stays open, and goes on when it is back."""
    try:
        return await queue.events(job_id, after)
    except LeitstandError:
        return []
