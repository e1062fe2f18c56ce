"""A call of an upstream behind its gate: breaker, bulkhead, retries, and a second call when the first is slow.

An inference changes nothing, so it may be asked again (RFC 9110, section 9.2.2), but never once an answer began. What
is repeated: a connection that broke before the first byte (at once: the usual cause is a kept-alive connection that
the server closed), and, when nobody else can step in, an upstream that took no connection or said 502 or 503
(after a random pause). What is not: time-outs, 500, and 503 with ``Retry-After``: there, more calls do harm.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

from services.breakers import Outcome
from services.gates import Gate
from services.gateway_metrics import HEDGES, RETRIES
from services.retries import backoff_s
from services.upstreams import Reply, UpstreamFailed

__all__ = ["Attempt", "call"]

Attempt = Callable[[float], Awaitable[Reply]]
"""Makes one call within so many seconds, and raises `UpstreamFailed` for every answer that is none."""


async def call(gate: Gate, attempt: Attempt, timeout_s: float, *, use_case: str, alone: bool) -> Reply:
    """The upstream's answer.

    Args:
        gate: Of the upstream.
        attempt: Makes one call.
        timeout_s: For all attempts together.
        use_case: For metrics.
        alone: Whether nobody steps in when this upstream fails.

    Raises:
        UpstreamFailed: No attempt was answered, or none was made.
    """
    until, number = perf_counter() + timeout_s, 0
    gate.retries.earn()
    once = _hedged if gate.spec.hedging.enabled else _guarded
    while True:
        number += 1
        try:
            return await once(gate, attempt, until - perf_counter(), use_case)
        except UpstreamFailed as error:
            pause = _pause(gate, error, number, alone=alone)
            if pause is None or perf_counter() + pause >= until:
                raise
            allowed = gate.retries.spend()
            RETRIES.labels(use_case, str(gate.target.version), "made" if allowed else "refused").inc()
            if not allowed:
                raise
        if pause:
            await asyncio.sleep(pause)


def _pause(gate: Gate, error: UpstreamFailed, number: int, *, alone: bool) -> float | None:
    """Seconds to wait before the next attempt; None when there is none."""
    spec = gate.spec.retries
    if number >= spec.attempts or not error.repeatable:
        return None
    if error.reason == "disconnected" and number == 1:
        return 0.0
    return backoff_s(number, spec.backoff_ms / 1000) if alone else None


async def _guarded(gate: Gate, attempt: Attempt, timeout_s: float, use_case: str) -> Reply:
    ticket = gate.enter()
    outcome: Outcome = "ignored"
    try:
        reply = await attempt(timeout_s)
        outcome = "succeeded"
    except UpstreamFailed as error:
        if gate.is_evidence(error, timeout_s):
            outcome = "failed"
        raise
    finally:
        gate.leave(ticket, outcome)
    return reply


async def _hedged(gate: Gate, attempt: Attempt, timeout_s: float, use_case: str) -> Reply:
    """The answer of the first call, or of a second one that starts when the first is slow."""
    start = perf_counter()
    gate.hedges.earn()
    first = asyncio.create_task(_guarded(gate, attempt, timeout_s, use_case))
    tasks = {first}
    try:
        slow_s = gate.slow_s
        if slow_s is not None and slow_s < timeout_s:
            await asyncio.wait(tasks, timeout=slow_s)
            if not first.done() and gate.hedges.spend():
                left = timeout_s - (perf_counter() - start)
                tasks.add(asyncio.create_task(_guarded(gate, attempt, left, use_case)))
        winner = await _first_answer(tasks, first)
        if len(tasks) > 1:
            HEDGES.labels(use_case, str(gate.target.version), "lost" if winner is first else "won").inc()
        reply = winner.result()
        gate.learn(perf_counter() - start)
        return reply
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_answer(tasks: set[asyncio.Task[Reply]], first: asyncio.Task[Reply]) -> asyncio.Task[Reply]:
    """The first task that answered; the first call when none did."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is None:
                return task
    return first
