"""An answer that leaves while it is written: guarded piece by piece, and known as a whole when it ends.

Live, a piece leaves as soon as its guard lets it go; what the guard holds back and the end mark leave after the record
is written, everything before has left by then. Buffered, nothing leaves before all of it was guarded and recorded.
However it ends (complete, blocked, broken off, nobody listens any more), what was said so far becomes the exchange's
reply, with the counts that the upstream told or a guess, so that it is settled and recorded like any other.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from time import perf_counter

from leitstand.types import Usage
from services.chat_payload import ChatPayload, whole
from services.exchange import Exchange
from services.gateway_metrics import FIRST_TOKEN
from services.openai_codec import Completion, Piece
from services.policies import StreamGuard
from services.upstreams import AnswerStream

__all__ = ["StreamedAnswer"]


class StreamedAnswer:
    """One answer of one exchange.

    Args:
        exchange: Its reply is the open stream.
        stream: That stream.
        guard: Judges the pieces; None: nobody does.
        buffered: Whether everything is kept until the end.
    """

    def __init__(self, exchange: Exchange, stream: AnswerStream, guard: StreamGuard | None, *, buffered: bool) -> None:
        self.target = stream.target
        self._exchange = exchange
        self._stream = stream
        self._guard = None if buffered else guard
        self._buffered = buffered
        self._read: list[str] = []
        self._said: list[str] = []
        self._tail = ""
        self._usage: Usage | None = None
        self._notes: dict[str, str] = {}
        self._finish_reason = ""

    async def pieces(self) -> AsyncIterator[Piece]:
        """What may leave before the end.

        Raises:
            UpstreamFailed: The upstream broke off.
            ContentBlocked: The guard ends it.
        """
        exchange, guard = self._exchange, self._guard
        async with aclosing(self._stream.pieces(exchange.deadline)) as source:  # type: ignore[type-var]
            while True:
                start = perf_counter()
                piece = await anext(source, None)
                exchange.upstream_s += perf_counter() - start
                if piece is None:
                    break
                self._learn(piece)
                text = piece.text if guard is None or not piece.text else guard.feed(piece.text)
                if not text:
                    continue
                self._said.append(text)
                if not self._buffered:
                    start = perf_counter()
                    yield Piece(text)
                    exchange.upstream_s += perf_counter() - start  # the caller's own time to read
        if guard is not None:
            self._tail = guard.finish()

    def end(self) -> None:
        """Closes the stream, and makes what was said the exchange's reply."""
        exchange, payload = self._exchange, self._exchange.payload
        self._stream.close()
        if self._guard is not None:
            self._guard.close()
        said = "".join(self._said) + (self._tail if exchange.error is None else "")
        exchange.take(whole(Completion(said, self._finish_reason, self._usage, self._notes)))
        if self._usage is None and isinstance(payload, ChatPayload):
            exchange.usage = payload.guess("".join(self._read))  # a guard may have let less through

    def rest(self) -> Iterator[Piece]:
        """What leaves at the end: text that was held back, then why it ended and what it used."""
        exchange, text = self._exchange, self._tail
        if self._buffered and exchange.reply is not None and exchange.reply.completion is not None:
            text = exchange.reply.completion.text
        if text:
            yield Piece(text)
        yield Piece(finish_reason=self._finish_reason or "stop", usage=exchange.usage, notes=self._notes)

    def _learn(self, piece: Piece) -> None:
        if piece.text:
            if not self._read:
                exchange = self._exchange
                who = (exchange.use_case, str(exchange.version), exchange.route)
                FIRST_TOKEN.labels(*who).observe(perf_counter() - exchange.arrived)
            self._read.append(piece.text)
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._usage = piece.usage or self._usage
        self._notes = self._notes or piece.notes
