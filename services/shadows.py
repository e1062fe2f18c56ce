"""Shadow calls: made after the answer is ready, compared with it, logged, and never returned."""

import asyncio
from time import perf_counter
from typing import Protocol

from leitstand.errors import PermanentBackendError
from leitstand.types import Target
from services import protected_calls
from services.calling import Calling, refuse_errors
from services.exchange import Exchange
from services.gates import Gates
from services.gateway_metrics import FAILURES, LATENCY, SHADOWS
from services.upstream_codec import decode_answer
from services.upstreams import Reply, UpstreamFailed

__all__ = ["Shadows"]

OK = 200
SHADOW_DEADLINE_S, CHAT_SHADOW_DEADLINE_S = 5.0, 60.0


class Log(Protocol):
    """Takes a shadow's answer."""

    def __call__(self, exchange: Exchange, reply: Reply, *, version: int, route: str, ms: float) -> None:
        """Logs it."""
        ...


class Shadows:
    """The shadow calls under way.

    Args:
        gates: What stands before the upstreams.
        calling: Makes the calls.
        log: Where answers go.
        limit: Calls at once; more are skipped.
    """

    def __init__(self, gates: Gates, calling: Calling, log: Log, limit: int) -> None:
        self._gates = gates
        self._calling = calling
        self._log = log
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, exchange: Exchange, target: Target) -> None:
        """Asks `target` in the background, unless too many are asked already."""
        if len(self._tasks) >= self._limit:
            SHADOWS.labels(exchange.use_case, str(target.version), "skipped").inc()
            return
        task = asyncio.create_task(self._shadow(exchange, target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shadow(self, exchange: Exchange, target: Target) -> None:
        """Asks the shadow what was answered already, compares the labels, and logs its rows."""
        outcome, start = "failed", perf_counter()

        async def attempt(left_s: float) -> Reply:
            reply, _ = await self._calling.send(exchange, target, left_s)
            refuse_errors(target, reply)
            return reply

        try:
            gate = self._gates.of(exchange.use_case, target)
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

    async def settled(self) -> None:
        """Returns when none is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Gives up those that still run."""
        for task in self._tasks:
            task.cancel()
        await self.settled()


def _compared(exchange: Exchange, reply: Reply) -> tuple[bool, int]:
    """Whether the shadow's answer is the one that was given, and its version, when it says; of chats, the same text."""
    if reply.completion is not None:
        given = exchange.reply.completion if exchange.reply is not None else None
        return given is not None and given.text == reply.completion.text, 0
    answer = decode_answer(reply.body, reply.head_bytes)
    return answer.labels == exchange.predictions().labels, answer.version
