"""The gateway's pipeline around an inference, without any transport.

    authenticate → admit → guard_input → route → call → guard_output → settle → audit → log

`services.policies` holds the stages that decide; *route*, *call* and *log* are here. Who fails costs the caller
nothing while somebody can step in: a canary gets half of the time left and stable the rest, of which a part is kept
for the table's fallback, where there is one. A failure is counted for the one who failed. Each upstream is
called behind its gate (`services.gates`, `services.protected_calls`). Shadow calls are made after the answer is ready,
and are never returned.

A policy that sets ``exchange.notes["fallback"]`` to a reason sends the request to the fallback at once; where there is
none, the error in ``exchange.notes["refusal"]`` is raised.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

from leitstand.errors import ContentBlocked, NotFoundError, PermanentBackendError, PolicyDenied, TransientBackendError
from leitstand.specs.resilience import ResilienceSpec
from leitstand.types import RouteTable, Target, utc_now
from services import protected_calls
from services.breakers import REFUSED
from services.chat_payload import ChatPayload
from services.deadlines import DeadlineExceeded, shorten, time_left
from services.exchange import NOTHING, Exchange
from services.gates import Gates
from services.gateway_metrics import (
    FAILURES,
    FALLBACK_ANSWERS,
    FALLBACKS,
    IN_FLIGHT,
    LATENCY,
    OVERHEAD,
    REQUESTS,
    SHADOWS,
    STREAMS,
    TOO_SHORT,
)
from services.openai_codec import Piece
from services.policies import Policies
from services.recording import Answered, Recorder
from services.route_watch import RouteWatch
from services.routing import Choice, Route, choose, insist
from services.scheduling import Overloaded
from services.shedding import Shedder
from services.streaming import StreamedAnswer
from services.upstream_codec import decode_answer
from services.upstreams import Offer, Reply, UpstreamFailed, Upstreams

__all__ = ["Inference"]

OK = 200
SERVER_ERROR, BAD_GATEWAY, BUSY, TOO_SLOW = 500, 502, 503, 504
CANARY_SHARE = 0.5
SHADOW_DEADLINE_S, CHAT_SHADOW_DEADLINE_S = 5.0, 60.0
FALLBACK = b"x-leitstand-fallback"
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
        self._max_shadows = max_shadows
        self._in_flight = 0
        self._shadows: set[asyncio.Task[None]] = set()

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
                self._start_shadow(exchange, choice.shadow)
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
            self._start_shadow(replace(exchange, payload=exchange.payload.unstreamed()), choice.shadow)

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
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _decide(self, exchange: Exchange) -> Choice:
        policies = self._policies
        await policies.authenticate(exchange)
        self._shedder.check(exchange, self.gates.spec(exchange.use_case).priorities, self._in_flight)
        await policies.admit(exchange)
        await policies.guard_input(exchange)
        choice = self._route(exchange)
        await self._call(exchange, choice)
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
        return _only_fallback(exchange, choice)

    async def _call(self, exchange: Exchange, choice: Choice) -> None:
        """Asks one after the other until somebody answers."""
        if choice.stand_in is None and choice.fallback is None:
            await self._ask(exchange, choice.route, choice.target, time_left(exchange), alone=True)
            return
        failure: UpstreamFailed | None = None
        for route, target, share in self._steps(choice, exchange.use_case):
            try:
                left = time_left(exchange)
                await self._ask(exchange, route, target, left * share, alone=share == 1)
                break
            except DeadlineExceeded as error:
                raise failure or error from failure
            except UpstreamFailed as error:
                if route == "fallback":
                    raise failure or error from error
                failure = error
                if route == "canary":
                    FALLBACKS.labels(exchange.use_case).inc()
        else:
            assert failure is not None  # noqa: S101 -- there is at least one step
            raise failure
        if exchange.route == "fallback" and failure is not None:
            _say_fallback(exchange, failure.reason)

    def _steps(self, choice: Choice, use_case: str) -> list[tuple[Route, Target, float]]:
        """Who is asked, in order, and for which share of the time that is left then."""
        last: Route = choice.route
        steps: list[tuple[Route, Target, float]] = []
        if choice.stand_in is not None:
            steps.append((choice.route, choice.target, CANARY_SHARE))
            last = "stable"
        target = choice.stand_in or choice.target
        if choice.fallback is None or choice.fallback == target:
            return [*steps, (last, target, 1.0)]
        kept = self.gates.spec(use_case).keep_for_fallback
        return [*steps, (last, target, 1 - kept), ("fallback", choice.fallback, 1.0)]

    async def _ask(self, exchange: Exchange, route: Route, target: Target, timeout_s: float, *, alone: bool) -> None:
        """Sets the exchange's reply, or counts the failure and raises it."""
        exchange.route, exchange.version, exchange.reply = route, target.version, None
        gate = self.gates.of(exchange.use_case, target)

        async def attempt(left_s: float) -> Reply:
            reply, offer = await self._send(exchange, target, left_s)
            _refuse_errors(target, reply)
            exchange.take(reply)
            if reply.status == OK and exchange.payload.asks_for_outputs:
                exchange.version = _check(exchange, target)
                exchange.labels = offer.labels
            return reply

        start = perf_counter()
        try:
            reply = await protected_calls.call(gate, attempt, timeout_s, use_case=exchange.use_case, alone=alone)
            if reply is not exchange.reply:  # of two calls for one request, the other was later read as well
                exchange.take(reply)
        except UpstreamFailed as error:
            exchange.reply = None
            who = (exchange.use_case, str(target.version), route)
            if error.reason == "timeout" and not gate.is_evidence(error, timeout_s):
                TOO_SHORT.labels(*who).inc()
            else:
                FAILURES.labels(*who, error.reason).inc()
            raise
        finally:
            exchange.upstream_s += perf_counter() - start

    async def _send(self, exchange: Exchange, target: Target, timeout_s: float) -> tuple[Reply, Offer]:
        payload, offer, start = exchange.payload, Offer(), perf_counter()
        if payload.asks_for_outputs:
            offer = await self._upstreams.describe(target, exchange.use_case, timeout_s / 4)
            timeout_s -= perf_counter() - start
        body, headers = payload.request(offer.outputs)
        return await self._upstreams.call(target, exchange.path, body, headers, timeout_s), offer

    def _log(self, exchange: Exchange, reply: Reply, *, version: int = 0, route: str = "", ms: float = -1) -> None:
        self._recorder.add(
            Answered(
                request_id=exchange.request_id, use_case=exchange.use_case, subject=exchange.subject,
                version=version or exchange.version, route=route or exchange.route, payload=exchange.payload,
                reply=reply, at=utc_now(), latency_ms=ms if ms >= 0 else (perf_counter() - exchange.arrived) * 1000,
            )
        )  # fmt: skip

    def _start_shadow(self, exchange: Exchange, target: Target) -> None:
        if len(self._shadows) >= self._max_shadows:
            SHADOWS.labels(exchange.use_case, str(target.version), "skipped").inc()
            return
        task = asyncio.create_task(self._shadow(exchange, target))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow(self, exchange: Exchange, target: Target) -> None:
        """Asks the shadow what was answered already, compares the labels, and logs its rows."""
        outcome, start = "failed", perf_counter()

        async def attempt(left_s: float) -> Reply:
            reply, _ = await self._send(exchange, target, left_s)
            _refuse_errors(target, reply)
            return reply

        try:
            gate = self.gates.of(exchange.use_case, target)
            patience_s = CHAT_SHADOW_DEADLINE_S if target.kind == "openai" else SHADOW_DEADLINE_S
            reply = await protected_calls.call(gate, attempt, patience_s, use_case=exchange.use_case, alone=False)
            if reply.status == OK:
                same, version = _compared(exchange, reply)
                outcome = "agree" if same else "disagree"
                elapsed = perf_counter() - start
                LATENCY.labels(exchange.use_case, str(target.version), "shadow").observe(elapsed)
                self._log(exchange, reply, version=version or target.version, route="shadow", ms=elapsed * 1000)
        except UpstreamFailed as error:
            FAILURES.labels(exchange.use_case, str(target.version), "shadow", error.reason).inc()
        except PermanentBackendError:
            FAILURES.labels(exchange.use_case, str(target.version), "shadow", "garbled").inc()
        SHADOWS.labels(exchange.use_case, str(target.version), outcome).inc()


def _compared(exchange: Exchange, reply: Reply) -> tuple[bool, int]:
    """Whether the shadow's answer is the one that was given, and its version, when it says; of chats, the same text."""
    if reply.completion is not None:
        given = exchange.reply.completion if exchange.reply is not None else None
        return given is not None and given.text == reply.completion.text, 0
    answer = decode_answer(reply.body, reply.head_bytes)
    return answer.labels == exchange.predictions().labels, answer.version


def _only_fallback(exchange: Exchange, choice: Choice) -> Choice:
    """The route of a request that a policy sends to the fallback."""
    target = choice.target if choice.route == "fallback" else choice.fallback
    if target is None:
        refusal = exchange.notes.get("refusal")
        if isinstance(refusal, Exception):
            raise refusal
        raise PolicyDenied(
            f"'{exchange.use_case}' may only be answered by its fallback ({exchange.notes['fallback']}), and has none",
            hint="name one with `leitstand routes set ... --fallback VERSION=URL`",
        )
    _say_fallback(exchange, str(exchange.notes["fallback"]))
    return Choice("fallback", target)


def _say_fallback(exchange: Exchange, reason: str) -> None:
    exchange.response_headers.append((FALLBACK, reason[:64].encode("latin-1", "replace")))
    FALLBACK_ANSWERS.labels(exchange.use_case, reason[:64]).inc()


def _refuse_errors(target: Target, reply: Reply) -> None:
    status = reply.status
    if status < SERVER_ERROR:
        return
    if status == BUSY:
        alive, wait = reply.retry_after is not None, _seconds(reply.retry_after)
        raise UpstreamFailed(f"{target.url} is busy", "busy", retry_after_s=wait, repeatable=not alive, alive=alive)
    if status == TOO_SLOW:
        raise UpstreamFailed(f"{target.url} gave up: the deadline passed", "timeout")
    raise UpstreamFailed(f"{target.url} answered {status}", "error", repeatable=status == BAD_GATEWAY)


def _check(exchange: Exchange, target: Target) -> int:
    """The version that answered; an answer that does not fit the request counts as none."""
    try:
        predictions = exchange.predictions()
    except PermanentBackendError as error:
        raise UpstreamFailed(f"{target.url}: {error.message}", "garbled") from error
    asked = len(exchange.payload.texts())
    if not asked == len(predictions.labels) == len(predictions.scores) == len(predictions.abstain):
        raise UpstreamFailed(f"{target.url} answered {len(predictions.labels)} of {asked} texts", "garbled")
    return predictions.version or target.version


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else 1.0
