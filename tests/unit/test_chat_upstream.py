"""How a provider's answer is read: in any pieces, with an end, a limit and a time between two pieces."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from yarl import URL

from leitstand.settings import ChatKey, ChatSettings
from leitstand.types import Target
from services.chat_upstream import ChatCalls, ChatStream, cut
from services.openai_codec import Completion, Piece
from services.upstreams import UpstreamFailed

TARGET = Target(version=2, url="https://api.example/v1", kind="openai", model="small", key="example")
SETTINGS = ChatSettings(
    keys={"example": ChatKey(url="https://api.example", value=SecretStr("sk-1"))}, idle_s=0.05, max_answer_bytes=1024
)


class Content:
    """What arrives, cut as a test likes; then the end, or nothing more."""

    def __init__(self, parts: Sequence[bytes], *, hangs: bool = False) -> None:
        self._parts, self._hangs = list(parts), hangs

    async def readany(self) -> bytes:
        if not self._parts and self._hangs:
            await asyncio.Event().wait()
        return self._parts.pop(0) if self._parts else b""


class Response:
    def __init__(self, parts: Sequence[bytes] = (), *, status: int = 200, hangs: bool = False, **headers: str) -> None:
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.content_type = headers.get("content_type", "text/event-stream")
        self.content: Any = Content(parts, hangs=hangs)
        self.ended: list[str] = []

    def close(self) -> None:
        self.ended.append("closed")

    def release(self) -> None:
        self.ended.append("released")


class Body(Content):
    async def iter_any(self) -> Any:
        for part in self._parts:
            yield part


class Session:
    """Answers one call, and remembers it."""

    def __init__(self, response: Response, *parts: bytes) -> None:
        self.response, self.sent = response, {}
        if parts:
            response.content = Body(parts)

    async def post(self, url: URL, **sent: Any) -> Response:
        self.sent = sent
        return self.response


def event(delta: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"delta": delta, "finish_reason": None} | more]}) + b"\n\n"


def stream(response: Response) -> ChatStream:
    return ChatStream(TARGET, response, SETTINGS)  # type: ignore[arg-type]


async def read(made: ChatStream) -> list[Piece]:
    await made.begin()
    return [piece async for piece in made.pieces(perf_counter() + 5)]


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


END = event({}, finish_reason="stop")


@given(st.lists(st.text(max_size=4), max_size=8), st.lists(st.integers(0, 2000), max_size=10), st.booleans())
def test_the_pieces_do_not_depend_on_how_the_network_cuts_them(texts: list[str], places: list[int], done: bool) -> None:
    raw = b"".join(event({"content": each}) for each in texts) + END + (b"data: [DONE]\n\n" if done else b"")
    bounds = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    parts = [raw[a:b] for a, b in pairwise(bounds) if a < b]
    assert text(asyncio.run(read(stream(Response(parts))))) == "".join(texts)


async def test_an_answer_without_an_end_broke_off_and_what_came_before_counts() -> None:
    made = stream(Response([event({"content": "a"}) + event({"content": "b"})]))
    await made.begin()
    seen: list[Piece] = []
    with pytest.raises(UpstreamFailed) as raised:
        async for piece in made.pieces(perf_counter() + 5):
            seen.append(piece)
    assert (raised.value.reason, text(seen)) == ("disconnected", "ab")


async def test_a_finished_answer_does_not_wait_for_its_counts_for_long() -> None:
    made = stream(Response([event({"content": "a"}), END], hangs=True))
    assert text(await read(made)) == "a"
    made.close()


async def test_silence_ends_a_stream() -> None:
    response = Response([event({"content": "a"})], hangs=True)
    made = stream(response)
    with pytest.raises(UpstreamFailed, match="wrote nothing") as raised:
        await read(made)
    made.close()
    assert raised.value.reason == "timeout" and response.ended == ["closed"]


async def test_a_long_answer_is_cut_off_and_said_to_be() -> None:
    pieces = await read(stream(Response([event({"content": "x" * 600})] * 3)))
    assert (len(text(pieces)), pieces[-1].finish_reason) == (600, "length")
    long = Completion("é" * 1000, "stop", None)
    assert cut(long, 1001) == Completion("é" * 500, "length", None)
    assert cut(long, 2000) == long


@pytest.mark.parametrize("parts", [[], [b": nothing\n\n"], [b"data: [DONE]\n\n"]])
async def test_a_stream_that_ends_before_it_began_is_no_answer(parts: list[bytes]) -> None:
    with pytest.raises(UpstreamFailed, match="before it answered"):
        await read(stream(Response(parts)))


async def once(response: Response, *parts: bytes, target: Target = TARGET) -> Any:
    session = Session(response, *parts)
    calls = ChatCalls(SETTINGS)
    reply = await calls.once(
        session,
        target,
        URL(target.url),
        b'{"messages":[]}',
        {"x-subject": "me", "accept": "application/json"},  # type: ignore[arg-type]
    )
    return session.sent, reply


async def test_the_call_carries_model_and_key_and_nothing_of_the_caller() -> None:
    answer = orjson.dumps({"choices": [{"message": {"content": "hi"}}]})
    sent, reply = await once(Response(), answer[:9], answer[9:])
    assert orjson.loads(sent["data"]) == {"model": "small", "messages": []} and sent["allow_redirects"] is False
    assert sent["headers"] == {
        "accept": "application/json", "user-agent": "leitstand", "authorization": "Bearer sk-1",
    }  # fmt: skip
    assert reply.completion.text == "hi"


@pytest.mark.parametrize(
    "url",
    ["http://api.example/v1", "https://api.example:8443/v1", "https://api.example.evil/v1", "https://evil/api.example"],
)
async def test_the_key_is_sent_to_no_other_origin(url: str) -> None:
    with pytest.raises(UpstreamFailed, match="belongs to another address"):
        await once(Response(), target=TARGET.model_copy(update={"url": url}))
    with pytest.raises(UpstreamFailed, match="is not set"):
        await once(Response(), target=TARGET.model_copy(update={"key": "other"}))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
     ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({}, 1), ({"retry-after": "soon"}, 1),
     ({"retry-after": "1e99"}, 86400), ({"retry-after": "nan"}, 1), ({"retry-after": "-5"}, 0)],
)  # fmt: skip
async def test_no_quota_is_no_capacity_until_the_provider_says(headers: dict[str, str], seconds: float) -> None:
    response = Response(status=429)
    response.headers = headers
    with pytest.raises(UpstreamFailed) as raised:
        await once(response, b"{}")
    assert (raised.value.reason, raised.value.retry_after_s, raised.value.alive) == ("busy", seconds, True)
    assert response.ended == ["closed"]


@pytest.mark.parametrize("value", ["sk\r\nx-evil: 1", "sk 1", "schlüssel", "\x00"])
def test_a_key_that_would_break_a_header_is_no_setting(value: str) -> None:
    with pytest.raises(ValidationError, match="visible ASCII"):
        ChatKey(url="https://api.example", value=SecretStr(value))


@pytest.mark.parametrize(
    "url", ["http://api.example", "https://api.example/v1", "https://me:pw@api.example", "ftp://a", ""]
)
def test_a_key_belongs_to_an_origin_that_hides_it(url: str) -> None:
    with pytest.raises(ValidationError):
        ChatKey(url=url, value=SecretStr("sk"))
