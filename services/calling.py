"""Who is asked for one request, in which order and for how long, and what counts as an answer.

A canary gets half of the time left and stable the rest, of which a part is kept for the table's fallback, where there
is one. A failure is counted for the one who failed, unless the caller gave too little time. Each upstream is called
behind its gate (`services.gates`, `services.protected_calls`).
"""

from time import perf_counter

from leitstand.errors import PermanentBackendError, PolicyDenied
from leitstand.types import Target
from services import protected_calls
from services.deadlines import DeadlineExceeded, time_left
from services.exchange import Exchange
from services.gates import Gates
from services.gateway_metrics import FAILURES, FALLBACK_ANSWERS, FALLBACKS, TOO_SHORT
from services.routing import Choice, Route
from services.upstreams import Offer, Reply, UpstreamFailed, Upstreams

__all__ = ["Calling", "only_fallback", "refuse_errors"]

OK = 200
SERVER_ERROR, BAD_GATEWAY, BUSY, TOO_SLOW = 500, 502, 503, 504
CANARY_SHARE = 0.5
FALLBACK = b"x-leitstand-fallback"


class Calling:
    """Calls of upstreams for exchanges.

    Args:
        gates: What stands before the upstreams.
        upstreams: Who is called; open.
    """

    def __init__(self, gates: Gates, upstreams: Upstreams) -> None:
        self._gates = gates
        self._upstreams = upstreams

    async def answer(self, exchange: Exchange, choice: Choice) -> None:
        """Asks one after the other until somebody answers, and sets the exchange's reply, route and version.

        Raises:
            UpstreamFailed: Nobody did; of a fallback that failed as well, what it was to help with.
            DeadlineExceeded: There is no time left to ask.
        """
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
        kept = self._gates.spec(use_case).keep_for_fallback
        return [*steps, (last, target, 1 - kept), ("fallback", choice.fallback, 1.0)]

    async def _ask(self, exchange: Exchange, route: Route, target: Target, timeout_s: float, *, alone: bool) -> None:
        """Sets the exchange's reply, or counts the failure and raises it."""
        exchange.route, exchange.version, exchange.reply = route, target.version, None
        gate = self._gates.of(exchange.use_case, target)

        async def attempt(left_s: float) -> Reply:
            reply, offer = await self.send(exchange, target, left_s)
            refuse_errors(target, reply)
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

    async def send(self, exchange: Exchange, target: Target, timeout_s: float) -> tuple[Reply, Offer]:
        """One call, whatever status is answered, and what the target offers.

        Raises:
            UpstreamFailed: Nothing was answered in time.
        """
        payload, offer, start = exchange.payload, Offer(), perf_counter()
        if payload.asks_for_outputs:
            offer = await self._upstreams.describe(target, exchange.use_case, timeout_s / 4)
            timeout_s -= perf_counter() - start
        body, headers = payload.request(offer.outputs)
        return await self._upstreams.call(target, exchange.path, body, headers, timeout_s), offer


def only_fallback(exchange: Exchange, choice: Choice) -> Choice:
    """The route of a request that a policy sends to the fallback.

    Raises:
        PolicyDenied: There is none; what the policy left to be raised then, if it did.
    """
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


def refuse_errors(target: Target, reply: Reply) -> None:
    """Returns for an answer of the model, be it about a wrong request.

    Raises:
        UpstreamFailed: It is one of a server in trouble.
    """
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
