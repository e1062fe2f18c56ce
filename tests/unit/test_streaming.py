"""An answer that leaves while it is written takes the pipeline's stages in order, however it ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from leitstand.errors import ContentBlocked, PolicyDenied, TransientBackendError
from leitstand.specs.chat import ChatSpec
from leitstand.specs.resilience import ResilienceSpec
from leitstand.types import Target, Usage
from services.chat_payload import make_payload, read_chat_request, whole
from services.exchange import CHAT_NOTES, Exchange
from services.openai_codec import Completion, Piece
from services.policies import Policies
from services.streaming import StreamedAnswer
from services.upstreams import CHAT_PATH, Reply, UpstreamFailed
from tests.gateway_for_tests import Bench, bench

STABLE, CANARY, SHADOW = (
    Target(version=n, url=f"http://api-{n}/v1", kind="openai", model="small") for n in (1, 2, 3)
)  # fmt: skip
COUNTED = Usage(tokens_in=7, tokens_out=2)
WORDS = (Piece("one", notes={"id": "up-1"}), Piece(" two"), Piece(finish_reason="stop"), Piece(usage=COUNTED))


def counted(name: str, **labels: str) -> float:
    """The sum over all labels that are not named."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


class ScriptedStream:
    """Pieces, then an error if there is one; without an end, it hangs."""

    def __init__(self, pieces: Sequence[Piece] = WORDS, error: Exception | None = None, *, hangs: bool = False) -> None:
        self.target = STABLE
        self.closed = 0
        self._pieces, self._error, self._hangs = pieces, error, hangs

    async def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        for piece in self._pieces:
            yield piece
        if self._hangs:
            await asyncio.Event().wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def streamed(stream: ScriptedStream) -> Reply:
    return Reply(200, b"", "text/event-stream", stream=stream)


def chat(request_id: str = "r-1", **fields: Any) -> Exchange:
    body = {"model": "support", "stream": True, "messages": [{"role": "user", "content": "a question"}]} | fields
    payload = make_payload(read_chat_request(orjson.dumps(body)), ChatSpec(), 50, 8)
    return Exchange(
        use_case="support", request_id=request_id, subject="", payload=payload, path=CHAT_PATH,
        deadline=perf_counter() + 5, usage=payload.estimate(),
    )  # fmt: skip


class Guard:
    """Holds back the last word, and blocks a forbidden one."""

    def __init__(self, forbidden: str = "") -> None:
        self.told = 0
        self._held, self._forbidden = "", forbidden

    def feed(self, chunk: str) -> str:
        if self._forbidden and self._forbidden in chunk:
            raise ContentBlocked("no", reasons=["test.forbidden"])
        out, self._held = self._held, chunk
        return out

    def finish(self) -> str:
        return self._held + "!"

    def close(self) -> None:
        self.told += 1


class Stages:
    """Notes every stage, and what had left by then."""

    def __init__(self, left: list[Piece], guard: Guard | None = None, *, refuse: str = "") -> None:
        self.seen: list[tuple[str, str]] = []
        self.usage: Usage | None = None
        self.written = ""
        self.error: BaseException | None = None
        self._left, self._guard, self._refuse = left, guard, refuse

    def policies(self) -> Policies:
        names = ("authenticate", "admit", "guard_input", "guard_output", "settle", "audit")
        return Policies(**{name: self._policy(name) for name in names}, guard_stream=lambda _: self._guard)

    def _policy(self, name: str) -> Any:
        async def decide(exchange: Exchange) -> None:
            self.seen.append((name, "".join(piece.text for piece in self._left)))
            if name == self._refuse:
                raise PolicyDenied(f"{name} says no") if name != "audit" else TransientBackendError("disk full")
            if name == "settle":
                self.usage, self.error = exchange.usage, exchange.error
                if exchange.reply is not None and exchange.reply.completion is not None:
                    self.written = exchange.reply.completion.text

        return decide


@asynccontextmanager
async def ready(
    stream: ScriptedStream, guard: Guard | None = None, refuse: str = "", **routes: Any
) -> AsyncIterator[tuple[Bench, Stages, list[Piece]]]:
    left: list[Piece] = []
    stages = Stages(left, guard, refuse=refuse)
    scripts: Any = {STABLE: streamed(stream), CANARY: UpstreamFailed("no", "refused"), SHADOW: streamed(stream)}
    async with bench(scripts, policies=stages.policies(), **({"stable": STABLE} | routes)) as parts:
        yield parts, stages, left


async def listen(parts: Bench, left: list[Piece], exchange: Exchange, *, buffered: bool = False) -> None:
    async with aclosing(parts.inference.stream(exchange, buffered=buffered)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            left.append(piece)


async def test_the_end_leaves_after_the_record_is_written() -> None:
    stream = ScriptedStream()
    async with ready(stream, Guard()) as (parts, stages, left):
        exchange = chat()
        await listen(parts, left, exchange)
    assert [piece.text for piece in left] == ["one", " two!", ""] and left[-1].finish_reason == "stop"
    assert stages.seen == [
        ("authenticate", ""), ("admit", ""), ("guard_input", ""), ("settle", "one"), ("audit", "one"),
    ]  # fmt: skip
    assert (stages.usage, stages.written) == (COUNTED, "one two!")
    assert exchange.notes[CHAT_NOTES] == {"id": "up-1", "tokens": "counted"}
    assert stream.closed == 1


async def test_buffered_nothing_leaves_before_all_of_it_is_guarded_and_recorded() -> None:
    async with ready(ScriptedStream(), Guard()) as (parts, stages, left):
        await listen(parts, left, chat(), buffered=True)
    assert [piece.text for piece in left] == ["one two", ""]
    assert [name for name, _ in stages.seen] == [
        "authenticate",
        "admit",
        "guard_input",
        "guard_output",
        "settle",
        "audit",
    ]
    assert {before for _, before in stages.seen} == {""}


@pytest.mark.parametrize("stage", ["authenticate", "admit", "guard_input"])
async def test_a_refused_stream_reaches_no_model_and_is_settled_and_audited(stage: str) -> None:
    stream = ScriptedStream()
    async with ready(stream, refuse=stage) as (parts, stages, left):
        with pytest.raises(PolicyDenied):
            await listen(parts, left, chat())
        assert parts.upstreams.asked == []
    assert (left, stages.usage) == ([], Usage())
    assert [name for name, _ in stages.seen][-2:] == ["settle", "audit"]


async def test_without_a_record_the_end_does_not_leave() -> None:
    async with ready(ScriptedStream(), Guard(), refuse="audit") as (parts, _, left):
        with pytest.raises(TransientBackendError, match="disk full"):
            await listen(parts, left, chat())
    assert [piece.text for piece in left] == ["one"]


async def test_a_block_ends_the_stream_and_what_was_used_is_settled() -> None:
    stream, guard = ScriptedStream((Piece("one"), Piece(" two"), Piece(" bad"), Piece(" more"))), Guard("bad")
    before = counted("gateway_streams_total", ended="blocked")
    async with ready(stream, guard) as (parts, stages, left):
        with pytest.raises(ContentBlocked):
            await listen(parts, left, chat())
    assert "".join(piece.text for piece in left) == stages.written == "one"
    assert stages.usage == Usage(tokens_in=4, tokens_out=4) and isinstance(stages.error, ContentBlocked)
    assert (stream.closed, guard.told) == (1, 1)
    assert counted("gateway_streams_total", ended="blocked") == before + 1


async def test_who_goes_away_ends_the_writing_and_pays_for_what_was_written() -> None:
    stream = ScriptedStream((Piece("one"), Piece(" two")), hangs=True)
    async with (
        ready(stream) as (parts, stages, left),
        aclosing(parts.inference.stream(chat())) as pieces,  # type: ignore[type-var]
    ):
        left += [await anext(pieces), await anext(pieces)]
    assert stages.written == "one two" and stages.usage == Usage(tokens_in=4, tokens_out=3)
    assert isinstance(stages.error, asyncio.CancelledError)
    assert stream.closed == 1 and parts.inference._in_flight == 0


async def test_an_upstream_that_breaks_off_fails_the_version_and_keeps_what_was_said() -> None:
    stream = ScriptedStream(WORDS[:2], UpstreamFailed("gone", "disconnected"))
    labels = {"version": "1", "route": "stable", "reason": "disconnected"}
    before = counted("gateway_upstream_failures_total", **labels)
    async with ready(stream) as (parts, stages, left):
        with pytest.raises(UpstreamFailed):
            await listen(parts, left, chat())
    assert stages.written == "one two" and stages.usage == Usage(tokens_in=4, tokens_out=3)
    assert counted("gateway_upstream_failures_total", **labels) == before + 1


async def test_upstreams_that_always_break_off_open_the_breaker() -> None:
    stream = ScriptedStream(WORDS[:1], UpstreamFailed("gone", "disconnected"))
    async with ready(stream) as (parts, _, left):
        gate = parts.inference.gates.of("support", STABLE)
        for _ in range(200):
            if gate.breaker.state == "open":
                break
            with pytest.raises(UpstreamFailed):
                await listen(parts, left, chat())
        assert gate.breaker.state == "open"


async def test_a_canary_that_does_not_begin_is_replaced_by_stable() -> None:
    async with ready(ScriptedStream(), canary=CANARY, canary_percent=100.0) as (parts, _, left):
        exchange = chat()
        await listen(parts, left, exchange)
    assert (exchange.version, exchange.route) == (1, "stable")
    assert parts.upstreams.asked == [CANARY, STABLE]


async def test_a_refusal_of_the_upstream_is_no_stream() -> None:
    async with ready(ScriptedStream()) as (parts, stages, left):
        parts.upstreams.scripts[STABLE] = Reply(400, b"too long", "text/plain")
        exchange = chat()
        await listen(parts, left, exchange)
    assert left == [] and exchange.reply is not None and exchange.reply.status == 400
    assert stages.usage == Usage()


async def test_the_shadow_is_asked_for_a_whole_answer() -> None:
    answer = whole(Completion("one two", "stop", None))
    before = counted("gateway_shadow_answers_total", version="3", outcome="agree")
    async with ready(ScriptedStream(), shadow=SHADOW) as (parts, _, left):
        bodies: list[bytes] = []
        parts.upstreams.scripts[SHADOW] = lambda body: bodies.append(body) or answer
        await listen(parts, left, chat())
        await parts.settled()
    assert "stream" not in orjson.loads(bodies[0])
    assert counted("gateway_shadow_answers_total", version="3", outcome="agree") == before + 1


async def test_a_row_of_the_log_has_no_label() -> None:
    async with ready(ScriptedStream()) as (parts, _, left):
        await listen(parts, left, chat())
        (row,) = parts.rows()
    assert (row.label, row.characters, row.tokens) == ("", 10, 7)


@given(st.lists(st.text(max_size=5), max_size=20))
def test_what_leaves_is_what_was_written(texts: list[str]) -> None:
    async def said() -> str:
        exchange = chat()
        exchange.take(streamed(ScriptedStream([Piece(text) for text in texts])))
        assert exchange.reply is not None and exchange.reply.stream is not None
        answer = StreamedAnswer(exchange, exchange.reply.stream, Guard(), buffered=False)
        pieces = [piece async for piece in answer.pieces()]
        answer.end()
        return "".join(piece.text for piece in [*pieces, *answer.rest()])

    assert asyncio.run(said()) == "".join(texts) + "!"


async def test_a_stream_holds_its_place_in_the_bulkhead_until_it_ends() -> None:
    async with ready(ScriptedStream(hangs=True), resilience=ResilienceSpec(max_concurrent=1)) as (parts, _, _):
        async with aclosing(parts.inference.stream(chat())) as pieces:  # type: ignore[type-var]
            await anext(aiter(pieces))
            with pytest.raises(UpstreamFailed, match="not answered yet"):
                await listen(parts, [], chat("r-2"))
        parts.upstreams.scripts[STABLE] = streamed(ScriptedStream())
        await listen(parts, [], chat("r-3"))
        assert parts.inference.gates.of("support", STABLE).in_flight == 0
