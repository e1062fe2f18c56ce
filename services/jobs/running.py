"""One attempt at one job: chunk after chunk through the gateway's pipeline, each kept as soon as it is answered.

Budgets, guards and the audit apply to every chunk, for the caller that the job was accepted from. A chunk that
is refused for its content is asked again text by text, so that one text spoils no other.

What can be paid for twice: a chunk whose answer a worker had and could not keep before it died or lost its lease;
and the texts of a chunk that was refused as a whole. Nothing else is asked again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

import orjson
import structlog

from leitstand.errors import ContentBlocked, TransientBackendError
from services.exchange import Exchange, TextPayload
from services.gateway_metrics import JOB_ATTEMPTS
from services.inference import Inference
from services.jobs.failures import Backoff, judge
from services.jobs.queue import JobQueue
from services.jobs.records import Outcome, Taken
from services.predictions import predictions_of
from services.upstreams import Reply

__all__ = ["Attempt"]

OK = 200
LOW = {b"x-priority": b"low"}  # whoever waits for an answer goes first
RETRY_S, LONGEST_RETRY_S = 0.1, 2.0

logger = structlog.get_logger()


class Attempt:
    """Runs jobs until they end, fail or are to be given back.

    Args:
        inference: The pipeline, without the stage *authenticate*: the gateway that accepted the job went through it.
        queue: Where the job came from.
        deadline_s: Time that one chunk gets.
        backoff: Waits before retries.
    """

    def __init__(self, inference: Inference, queue: JobQueue, *, deadline_s: float, backoff: Backoff) -> None:
        self._inference = inference
        self._queue = queue
        self._deadline_s = deadline_s
        self._backoff = backoff

    async def run(self, taken: Taken, stopping: Callable[[], bool]) -> Outcome:
        """What became of the job; it is given back between two chunks once `stopping` says so."""
        outcome, answered = "lost", 0
        try:
            for chunk, texts in taken.missing():
                if stopping():
                    return await self.give_back(taken)
                answers = await self._answer(taken, f"{taken.id}.{taken.fence}.{chunk}", texts)
                outcome = await _insist(lambda n=chunk, a=answers: self._queue.checkpoint(taken, n, a))
                answered += 1
                if outcome != "running":
                    return outcome
        except Exception as error:  # the boundary: whatever it is, the job learns of it
            outcome = await self._failed(taken, error, answered)
        finally:
            JOB_ATTEMPTS.labels(taken.use_case, outcome).inc()
        return outcome

    async def give_back(self, taken: Taken) -> Outcome:
        """The job waits again at once, and the attempt does not count."""
        return await self._queue.release(taken, delay_s=0, counted=False, code="", detail="")

    async def _answer(self, taken: Taken, request_id: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        exchange = Exchange(
            use_case=taken.use_case, request_id=request_id, subject=taken.subject, payload=TextPayload(texts),
            path=f"/v2/models/{taken.use_case}/infer", deadline=perf_counter() + self._deadline_s,
            caller=taken.caller, headers=LOW,
        )  # fmt: skip
        try:
            reply = await self._inference.run(exchange)
        except ContentBlocked as error:
            refused = {"code": "blocked", "detail": error.message, "reasons": list(error.reasons)}
        else:
            if reply.status == OK:
                made = predictions_of(exchange, taken.top_k)
                who = {"version": exchange.version, "route": exchange.route, "request_id": request_id}
                return [each | who | {"index": index} for index, each in enumerate(made)]
            refused = {"code": f"http:{reply.status}", "detail": _reason(reply), "reasons": []}
        if len(texts) == 1:
            return [{"error": refused, "request_id": request_id, "index": 0}]
        alone = [await self._answer(taken, f"{request_id}.{n}", [text]) for n, text in enumerate(texts)]
        return [answer for answers in alone for answer in answers]

    async def _failed(self, taken: Taken, error: Exception, answered: int) -> Outcome:
        verdict = judge(error, 1 if answered else taken.fruitless, self._backoff)
        if verdict.code == "internal":
            logger.exception("A job failed", job=taken.id)
        if verdict.retry_s is None:
            return await _insist(lambda: self._queue.fail(taken, code=verdict.code, detail=verdict.detail))
        return await _insist(
            lambda: self._queue.release(
                taken, delay_s=verdict.retry_s or 0, counted=verdict.counted, code=verdict.code, detail=verdict.detail
            )
        )


async def _insist(say: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Says it until Redis answers: what was answered is not paid for again because Redis was away for a while."""
    wait_s = RETRY_S
    while True:
        try:
            return await say()
        except TransientBackendError as error:
            logger.warning("A job's state cannot be kept yet", cause=error.message)
            await asyncio.sleep(wait_s)
            wait_s = min(LONGEST_RETRY_S, wait_s * 2)


def _reason(reply: Reply) -> str:
    """What an upstream's error body says, cut."""
    try:
        return str(orjson.loads(reply.body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return f"the model answered {reply.status}"
