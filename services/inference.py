"""The gateway's pipeline around an inference, without any transport.

    authenticate → admit → guard_input → route → call → guard_output → settle → audit → log

`services.policies` holds the stages that decide; *route* and *log* are here, *call* is in `services.calling`: whoever
fails costs the caller nothing while somebody can step in. Shadow calls (`services.shadows`) are made after the answer
is ready, and are never returned.

A policy that sets ``exchange.notes["fallback"]`` to a reason sends the request to the fallback at once; where there is
none, the error in ``exchange.notes["refusal"]`` is raised.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

from leitstand.errors import ContentBlocked, NotFoundError, TransientBackendError
from leitstand.specs.resilience import ResilienceSpec
from leitstand.types import RouteTable, Target, utc_now
from services.breakers import REFUSED
from services.calling import Calling, only_fallback
from services.chat_payload import ChatPayload
from services.deadlines import shorten
from services.exchange import NOTHING, Exchange
from services.gates import Gates
from services.gateway_metrics import (
    FAILURES,
    IN_FLIGHT,
    LATENCY,
    OVERHEAD,
    REQUESTS,
    STREAMS,
)
from services.openai_codec import Piece
from services.policies import Policies
from services.recording import Answered, Recorder
from services.route_watch import RouteWatch
from services.routing import Choice, choose, insist
from services.scheduling import Overloaded
from services.shadows import Shadows
from services.shedding import Shedder
from services.streaming import StreamedAnswer
from services.upstreams import Reply, UpstreamFailed, Upstreams

__all__ = ["Inference"]

OK = 200
STANDARD = ResilienceSpec()


class Inference:
    """The pipeline of one gateway process.

    Args:
        routes: The route tables in use.
        upstreams: Who is called; open.
        recorder: Where answers are logged.
        policies: The deciding stages.
        gates: What stands before the upstreams; by default what `ResilienceSpec` says without a use-case file.
        max_in_flight: Requests at once; more are refused.
        max_shadows: Shadow calls at once; more are skipped.
    """

    def __init__(
        self,
        routes: RouteWatch,
        upstreams: Upstreams,
        recorder: Recorder,
        *,
        policies: Policies | None = None,
        gates: Gates | None = None,
        max_in_flight: int = 512,
        max_shadows: int = 16,
    ) -> None:
        self.routes = routes
        self._upstreams = upstreams
        self._recorder = recorder
        self._policies = policies or Policies()
        self.gates = gates or Gates(lambda _: STANDARD, max_in_flight=max_in_flight)
        self.routes.changed = lambda table: self.gates.keep(table.use_case, table.targets())
        self._shedder = Shedder(max_in_flight)
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._calling = Calling(self.gates, upstreams)
        self._shadows = Shadows(self.gates, self._calling, self._log, max_shadows)

    async def run(self, exchange: Exchange) -> Reply:
        """Takes the exchange through every stage and returns the answer, whatever its status below 500.

        Raises:
            NotFoundError: No such use case, or no such version of it.
            Overloaded: Too many requests at once.
            UpstreamFailed: Nobody answered in time, or with anything but an error of its own.
            DeadlineExceeded: The caller's time was over before anybody could be asked.
            PolicyDenied: A policy said no.
            HttpError: The caller's deadline or priority cannot be understood.
        """
        self._enter()
        choice = None
        try:
            try:
                shorten(exchange)
                choice = await self._decide(exchange)
            except BaseException as error:
                exchange.error = error
                raise
            finally:
                await self._finish(exchange)
        finally:
            self._leave(exchange)
        reply = exchange.reply
        assert reply is not None  # noqa: S101 -- `call` sets it or raises
        if reply.status == OK:
            self._log(exchange, reply)
            if choice.shadow is not None and exchange.route != "fallback":
                self._shadows.start(exchange, choice.shadow)
        return reply

    async def stream(self, exchange: Exchange, *, buffered: bool = False) -> AsyncIterator[Piece]:
        """`run` for an answer that leaves while it is written; close the iterator when nobody listens any more.

        Everything that refuses a request raises before the first piece, as in `run`; so does what breaks off later,
        then after pieces that have left. Without any piece, the upstream's refusal is the exchange's reply.

        Args:
            exchange: Its payload asks for a stream.
            buffered: Whether nothing may leave before all of it was guarded and recorded.

        Raises:
            ContentBlocked: A guard ends it.
            UpstreamFailed: It broke off.
        """
        self._enter()
        choice = answer = None
        try:
            try:
                shorten(exchange)
                choice = await self._decide(exchange)
                answer = self._begin(exchange, buffered=buffered)
                if answer is not None:
                    gate = self.gates.of(exchange.use_case, answer.target)
                    with gate.held():
                        async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
                            async for piece in pieces:
                                yield piece
                    answer.end()
                    if buffered:
                        await self._policies.guard_output(exchange)
            except BaseException as error:
                self._broken(exchange, error, answer)
                raise
            finally:
                await self._finish(exchange)
        finally:
            self._leave(exchange)
        if answer is None:
            return
        STREAMS.labels(exchange.use_case, "complete").inc()
        for piece in answer.rest():
            yield piece
        reply = exchange.reply
        assert reply is not None  # noqa: S101 -- `end` sets it
        self._log(exchange, reply)
        if choice.shadow is not None and exchange.route != "fallback" and isinstance(exchange.payload, ChatPayload):
            self._shadows.start(replace(exchange, payload=exchange.payload.unstreamed()), choice.shadow)

    def _begin(self, exchange: Exchange, *, buffered: bool) -> StreamedAnswer | None:
        reply = exchange.reply
        if reply is None or reply.stream is None:
            return None
        guard = None if buffered else self._policies.guard_stream(exchange)
        return StreamedAnswer(exchange, reply.stream, guard, buffered=buffered)

    def _broken(self, exchange: Exchange, error: BaseException, answer: StreamedAnswer | None) -> None:
        """Says how it ended; an upstream that breaks off in the middle failed as much as one that never answers."""
        gone = isinstance(error, GeneratorExit | asyncio.CancelledError)
        exchange.error = asyncio.CancelledError() if gone else error
        reply = exchange.reply
        if answer is None:
            if reply is not None and reply.stream is not None:
                reply.stream.close()
            return
        if reply is not None and reply.stream is not None:
            answer.end()
        ended = "gone" if gone else "blocked" if isinstance(error, ContentBlocked) else "failed"
        STREAMS.labels(exchange.use_case, ended).inc()
        if isinstance(error, UpstreamFailed):
            FAILURES.labels(exchange.use_case, str(exchange.version), exchange.route, error.reason).inc()
            breaker = self.gates.of(exchange.use_case, answer.target).breaker
            if (ticket := breaker.enter()) != REFUSED:
                breaker.leave(ticket, "failed")

    async def pass_on(self, use_case: str, path: str, timeout_s: float) -> tuple[Target, Reply]:
        """GETs `path` from the stable upstream: metadata, which belongs to no exchange.

        Raises:
            NotFoundError: No such use case.
            UpstreamFailed: It did not answer in time.
        """
        target = self._table(use_case).stable
        return target, await self._upstreams.ask(target, path, timeout_s)

    async def labels(self, use_case: str) -> tuple[str, ...]:
        """The labels of the stable model, or none when it does not tell.

        Raises:
            NotFoundError: No such use case.
        """
        return (await self._upstreams.describe(self._table(use_case).stable, use_case)).labels

    async def close(self) -> None:
        """Gives up the shadow calls that still run."""
        await self._shadows.close()

    async def _decide(self, exchange: Exchange) -> Choice:
        policies = self._policies
        await policies.authenticate(exchange)
        self._shedder.check(exchange, self.gates.spec(exchange.use_case).priorities, self._in_flight)
        await policies.admit(exchange)
        await policies.guard_input(exchange)
        choice = self._route(exchange)
        await self._calling.answer(exchange, choice)
        if exchange.reply is None or exchange.reply.stream is None:  # a stream is guarded while it is written
            await policies.guard_output(exchange)
        return choice

    async def _finish(self, exchange: Exchange) -> None:
        """What was not answered used nothing, as far as is known here; a budget that cannot be settled is on record."""
        if exchange.reply is None or exchange.reply.status != OK:
            exchange.usage = NOTHING
        try:
            await self._policies.settle(exchange)
        except BaseException as error:
            exchange.error = exchange.error or error
            raise
        finally:
            await self._policies.audit(exchange)

    def _enter(self) -> None:
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(f"{self._in_flight} requests are being answered", 1.0)
        self._in_flight += 1
        IN_FLIGHT.inc()

    def _leave(self, exchange: Exchange) -> None:
        self._in_flight -= 1
        IN_FLIGHT.dec()
        if exchange.route:
            status = str(exchange.reply.status) if exchange.reply and exchange.error is None else "none"
            who = (exchange.use_case, str(exchange.version), exchange.route)
            REQUESTS.labels(*who, status).inc()
            if status == "200":
                elapsed = perf_counter() - exchange.arrived
                LATENCY.labels(*who).observe(elapsed)
                OVERHEAD.observe(elapsed - exchange.upstream_s)

    def _table(self, use_case: str) -> RouteTable:
        table = self.routes.table(use_case)
        if table is None:
            if not self.routes.seen:
                raise TransientBackendError(f"The routes are not known: {self.routes.down}", hint="try again")
            raise NotFoundError(
                f"No routes for use case '{use_case}'",
                hint=f"there are: {', '.join(self.routes.names()) or 'none'}",
            )
        return table

    def _route(self, exchange: Exchange) -> Choice:
        table, version, tenant = self._table(exchange.use_case), exchange.wanted_version, exchange.caller.tenant
        if version is None:
            choice = choose(table, exchange.request_id, exchange.subject, tenant)
        else:
            choice = insist(table, version, tenant)
            if choice is None:
                raise NotFoundError(f"Version {version} of '{exchange.use_case}' is not routed to")
        if "fallback" not in exchange.notes:
            return choice
        return only_fallback(exchange, choice)

    def _log(self, exchange: Exchange, reply: Reply, *, version: int = 0, route: str = "", ms: float = -1) -> None:
        self._recorder.add(
            Answered(
                request_id=exchange.request_id, use_case=exchange.use_case, subject=exchange.subject,
                version=version or exchange.version, route=route or exchange.route, payload=exchange.payload,
                reply=reply, at=utc_now(), latency_ms=ms if ms >= 0 else (perf_counter() - exchange.arrived) * 1000,
            )
        )  # fmt: skip
