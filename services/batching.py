"""Adaptive batching in this process: requests on the event loop, batches on worker threads.

`Batcher.classify` is awaited by every transport. The decisions are in `services.scheduling`; here are
only futures, threads and timers. Engines release the interpreter lock, so the loop keeps answering.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from models.loading import Classifier, Predictions
from services.metrics import BATCH_TEXTS, BATCH_TOKENS, QUEUE, SHED
from services.scheduling import Batch, Item, Limits, Overloaded, Scheduler, TooLate

__all__ = ["Answer", "Batcher"]

Computed = tuple[Predictions, Sequence[np.ndarray | None] | np.ndarray]


@dataclass(slots=True)
class Answer:
    """The answer for one text; `probabilities` are in the order of the model's labels.

    `embedding` is (hidden,) float32 where the request asked for it.
    """

    label: str
    score: float
    abstain: bool
    probabilities: np.ndarray
    embedding: np.ndarray | None = None


class _Waiter:
    """One request: collects the answers of its texts."""

    __slots__ = ("answers", "embedding", "future", "hurried", "missing")

    def __init__(self, texts: int, loop: asyncio.AbstractEventLoop, embedding: bool, *, hurried: bool = False) -> None:
        self.embedding = embedding
        self.hurried = hurried
        self.answers: list[Answer | None] = [None] * texts
        self.missing = texts
        self.future: asyncio.Future[list[Answer]] = loop.create_future()

    def put(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.answers)  # type: ignore[arg-type]

    def expire(self) -> None:
        reason = "the deadline passed in the queue"
        self.fail(TooLate(reason) if self.hurried else Overloaded(reason, 1.0))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """Batches the requests of one process for one classifier. Create it on the running event loop."""

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier = classifier
        self.scheduler = Scheduler(limits)
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(limits.workers, "leitstand-engine")
        self._free = list(range(limits.workers))
        self._timer: asyncio.TimerHandle | None = None

    async def classify(
        self, ids: Sequence[Sequence[int]], *, embedding: bool = False, within_s: float = math.inf
    ) -> list[Answer]:
        """Answers for the token ids of one request, in order; with the pooled embedding when asked for.

        Cancelling the caller takes texts that wait out of the queue. `within_s` is the time that the caller gives; it
        can only shorten the limits' own deadline.

        Raises:
            Overloaded: Refused at once, or not computed before its deadline.
            TooLate: The caller's time is too short, or was.
        """
        now = time.monotonic()
        longest = self.scheduler.limits.deadline_s
        waiter = _Waiter(len(ids), self._loop, embedding, hurried=within_s < longest)
        deadline = now + min(longest, within_s)
        items = [Item(text, deadline, waiter, index) for index, text in enumerate(ids)]
        self.scheduler.admit(items, now)
        self._dispatch()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            for item in items:
                item.cancelled = True
            raise

    async def warm_up(self, texts: Sequence[str], rounds: int = 3) -> None:
        """Runs every worker on real batches until code paths and the token rate are warm."""
        ids = self.classifier.encode(texts)
        for count in (1, 8, len(ids)):
            for _ in range(rounds):
                await asyncio.gather(*(self.classify(ids[:count]) for _ in self._free or [0]))

    def close(self) -> None:
        """Waits for running batches; queued texts are refused."""
        for item in self.scheduler.drain():
            item.owner.fail(Overloaded("the server is shutting down", 1.0))  # type: ignore[union-attr]
        self._pool.shutdown(wait=True)

    def _dispatch(self) -> None:
        """Hands batches to free workers until none is free or waiting is better."""
        while self._free:
            worker = self._free[-1]
            batch, late, again = self.scheduler.take(worker, time.monotonic())
            for item in late:
                SHED.labels("deadline").inc()
                item.owner.expire()  # type: ignore[union-attr]
            if batch is None:
                self._set_timer(again)
                break
            self._free.pop()
            self._pool.submit(self._compute, worker, batch)

    def _set_timer(self, delay: float | None) -> None:
        if delay is not None and self._timer is None:
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _compute(self, worker: int, batch: Batch) -> None:
        """On a worker thread."""
        start = time.monotonic()
        outcome: Future[Computed] = Future()
        ids = [item.ids for item in batch.items]
        try:
            if any(item.owner.embedding for item in batch.items):  # type: ignore[union-attr]
                logits, vectors = self.classifier.backend.run_with_embedding(ids)
            else:
                logits, vectors = self.classifier.backend.run(ids), [None] * len(ids)
            outcome.set_result((self.classifier.decide(logits), vectors))
        except Exception as error:  # an engine's fault must reach the waiting requests, whatever it is
            outcome.set_exception(error)
        self._loop.call_soon_threadsafe(self._done, worker, batch, outcome, time.monotonic() - start)

    def _done(self, worker: int, batch: Batch, outcome: "Future[Computed]", seconds: float) -> None:
        self.scheduler.finish(worker, seconds)
        self._free.append(worker)
        self._dispatch()
        BATCH_TEXTS.observe(len(batch.items))
        BATCH_TOKENS.inc(batch.tokens)
        QUEUE.set(self.scheduler.queued)
        error = outcome.exception()
        if error is not None:
            for item in batch.items:
                item.owner.fail(error)  # type: ignore[union-attr]
            return
        made, vectors = outcome.result()
        answers = map(
            Answer, made.labels, made.scores.tolist(), made.abstain.tolist(), made.probabilities, vectors
        )  # fmt: skip
        for item, answer in zip(batch.items, answers, strict=True):
            item.owner.put(item.index, answer)  # type: ignore[union-attr]
