"""The gateway's pipeline around an inference, without any transport.

    authenticate → admit → guard_input → route → call → guard_output → settle → audit → log

`services.policies` holds the stages that decide; *route*, *call* and *log* are here. A canary that cannot
answer costs the caller nothing: it gets half of the deadline, and stable answers in the rest. Its failure is
counted for the canary. Shadow calls are made after the answer is ready, and are never returned.
"""

import asyncio
from time import perf_counter

from leitstand.errors import NotFoundError, PermanentBackendError, TransientBackendError
from leitstand.types import RouteTable, Target, utc_now
from services.exchange import Exchange
from services.gateway_metrics import FAILURES, FALLBACKS, IN_FLIGHT, LATENCY, OVERHEAD, REQUESTS, SHADOWS
from services.policies import Policies
from services.recording import Answered, Recorder
from services.route_watch import RouteWatch
from services.routing import Choice, choose
from services.scheduling import Overloaded
from services.upstream_codec import decode_answer
from services.upstreams import Offer, Reply, UpstreamFailed, Upstreams

__all__ = ["Inference"]

OK = 200
BUSY = 503
SERVER_ERROR = 500
SHADOW_DEADLINE_S = 5.0


class Inference:
    """The pipeline of one gateway process.

    Args:
        routes: The route tables in use.
        upstreams: Who is called; open.
        recorder: Where answers are logged.
        policies: The deciding stages.
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
        max_in_flight: int = 512,
        max_shadows: int = 16,
    ) -> None:
        self.routes = routes
        self._upstreams = upstreams
        self._recorder = recorder
        self._policies = policies or Policies()
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
            PolicyDenied: A policy said no.
        """
        self._enter()
        choice = None
        try:
            try:
                choice = await self._decide(exchange)
            except BaseException as error:
                exchange.error = error
                raise
            finally:
                await self._policies.settle(exchange)
                await self._policies.audit(exchange)
        finally:
            self._leave(exchange)
        reply = exchange.reply
        assert reply is not None  # noqa: S101 -- `call` sets it or raises
        if reply.status == OK:
            self._log(exchange, reply)
            if choice.shadow is not None:
                self._start_shadow(exchange, choice.shadow)
        return reply

    async def pass_on(self, use_case: str, path: str, timeout_s: float) -> tuple[Target, Reply]:
        """GETs `path` from the stable upstream: metadata, which belongs to no exchange.

        Raises:
            NotFoundError: No such use case.
            UpstreamFailed: It did not answer in time.
        """
        target = self._table(use_case).stable
        return target, await self._upstreams.call(target, path, None, {}, timeout_s)

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
        await policies.admit(exchange)
        await policies.guard_input(exchange)
        choice = self._route(exchange)
        await self._call(exchange, choice)
        await policies.guard_output(exchange)
        return choice

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
        table = self._table(exchange.use_case)
        if exchange.wanted_version is None:
            return choose(table, exchange.request_id, exchange.subject)
        if table.stable.version == exchange.wanted_version:
            return Choice("stable", table.stable, None, None)
        if table.canary is not None and table.canary.version == exchange.wanted_version:
            return Choice("canary", table.canary, None, None)
        raise NotFoundError(f"Version {exchange.wanted_version} of '{exchange.use_case}' is not routed to")

    async def _call(self, exchange: Exchange, choice: Choice) -> None:
        left = exchange.deadline - perf_counter()
        if choice.fallback is None:
            await self._ask(exchange, choice.target, choice.route, left)
            return
        try:
            await self._ask(exchange, choice.target, choice.route, left / 2)
        except UpstreamFailed:
            FALLBACKS.labels(exchange.use_case).inc()
            await self._ask(exchange, choice.fallback, "stable", exchange.deadline - perf_counter())

    async def _ask(self, exchange: Exchange, target: Target, route: str, timeout_s: float) -> None:
        """Sets the exchange's reply, or counts the failure and raises it."""
        exchange.route, exchange.version, exchange.reply = route, target.version, None
        try:
            start = perf_counter()
            try:
                reply, offer = await self._send(exchange, target, timeout_s)
            finally:
                exchange.upstream_s += perf_counter() - start
            _refuse_errors(target, reply)
            exchange.take(reply)
            if reply.status == OK and exchange.payload.asks_for_outputs:
                exchange.version = _check(exchange, target)
                exchange.labels = offer.labels
        except UpstreamFailed as error:
            FAILURES.labels(exchange.use_case, str(target.version), route, error.reason).inc()
            raise

    async def _send(self, exchange: Exchange, target: Target, timeout_s: float) -> tuple[Reply, Offer]:
        payload = exchange.payload
        offer = await self._upstreams.describe(target, exchange.use_case) if payload.asks_for_outputs else Offer()
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
        try:
            reply, _ = await self._send(exchange, target, SHADOW_DEADLINE_S)
            _refuse_errors(target, reply)
            if reply.status == OK:
                answer = decode_answer(reply.body, reply.head_bytes)
                outcome = "agree" if answer.labels == exchange.predictions().labels else "disagree"
                elapsed = perf_counter() - start
                LATENCY.labels(exchange.use_case, str(target.version), "shadow").observe(elapsed)
                self._log(exchange, reply, version=answer.version or target.version, route="shadow", ms=elapsed * 1000)
        except UpstreamFailed as error:
            FAILURES.labels(exchange.use_case, str(target.version), "shadow", error.reason).inc()
        except PermanentBackendError:
            FAILURES.labels(exchange.use_case, str(target.version), "shadow", "garbled").inc()
        SHADOWS.labels(exchange.use_case, str(target.version), outcome).inc()


def _refuse_errors(target: Target, reply: Reply) -> None:
    if reply.status == BUSY:
        raise UpstreamFailed(f"{target.url} is busy", "busy", retry_after_s=_seconds(reply.retry_after))
    if reply.status >= SERVER_ERROR:
        raise UpstreamFailed(f"{target.url} answered {reply.status}", "error")


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
