"""The decisions of the batcher as pure code: who is admitted, who is computed next, who came too late.

Time is an argument and nothing here waits, so every rule can be tested with a made-up clock. The asyncio
shell is `services.batching`.

Rules:

- Order is first in, first out. Rows are packed by tokens later on, so mixing lengths costs nothing and a
  long text cannot starve.
- A free worker starts at once when no other is busy. Otherwise it waits while texts keep arriving, because
  the answers of a finished batch bring new requests in a burst, and the first of them would start a batch
  of one. It stops waiting when nothing came for `gap_s`, when as many texts are queued as the running
  batches hold on average, when the batch is large enough to compute at full speed (`enough_tokens`), or
  after `linger_s`. Waiting for more than that leaves a core idle.
- A caller may give less time than `deadline_s`. What is expired when its turn comes is not computed.
- A request is admitted when its texts fit the queue and the estimated wait, learnt from the token rate of
  finished batches, leaves it time before its deadline. Until the first batch was measured only the queue
  counts: a cold estimate must not shed load.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Batch", "Item", "Limits", "Overloaded", "Scheduler", "TooLate"]

_SMOOTHING = 0.1
_PATIENCE = 0.4  # share of a batch's time that a free worker waits for a fuller batch


@dataclass(frozen=True)
class Limits:
    """Bounds of the batcher; `deadline_s` counts from arrival.

    A batch of `enough_tokens` (some 24 texts of 15 tokens) costs 3 % more per text than one of 64 texts,
    measured with OpenVINO in bf16 on one core.
    """

    max_batch_texts: int = 64
    max_batch_tokens: int = 1024
    max_queue: int = 512
    deadline_s: float = 2.0
    linger_s: float = 0.025
    gap_s: float = 0.002
    enough_tokens: int = 384
    workers: int = 1


@dataclass(eq=False, slots=True)
class Item:
    """One text waiting for a worker. `cancelled` is set by the shell when nobody waits for it any more."""

    ids: Sequence[int]
    deadline: float
    owner: object = None
    index: int = 0
    cancelled: bool = False


@dataclass(frozen=True)
class Batch:
    """What one worker computes in one call."""

    items: list[Item]
    tokens: int


class Overloaded(Exception):
    """The request is refused; try again after `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class TooLate(Overloaded):
    """The answer would come, or came, after the time that the caller gave."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, 1.0)


@dataclass
class Scheduler:
    """The queue and what is known about the workers' speed. Not thread-safe: one event loop owns it."""

    limits: Limits
    _queue: deque[Item] = field(default_factory=deque)
    _queued_tokens: int = 0
    _running: dict[int, Batch] = field(default_factory=dict)
    _rate: float | None = None
    _arrivals: deque[float] = field(default_factory=deque)

    @property
    def queued(self) -> int:
        """Texts waiting."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Workers that compute."""
        return len(self._running)

    @property
    def tokens_per_s(self) -> float | None:
        """Learnt rate of one worker, or None before the first batch."""
        return self._rate

    def wait_s(self, tokens: int = 0) -> float:
        """Estimated time until `tokens` more tokens would be finished; 0 while nothing is known."""
        if self._rate is None:
            return 0.0
        running = sum(batch.tokens for batch in self._running.values()) / 2
        return (self._queued_tokens + running + tokens) / (self._rate * self.limits.workers)

    def refusal(self, texts: int = 1, tokens: int = 0, within_s: float = math.inf) -> Overloaded | None:
        """Why a request of that size would be refused now, or None. Cheap: asked before a body is read.

        `within_s` is the time that its caller gives.
        """
        if within_s <= 0:
            return TooLate("the caller's deadline passed")
        if self.queued and self.queued + texts > self.limits.max_queue:
            return Overloaded(f"{self.queued} texts are waiting", self._retry_after())
        wait = self.wait_s(tokens)
        if self.queued and wait > self.limits.deadline_s:
            return Overloaded(f"the answer would take {wait:.1f} s", self._retry_after())
        if self.queued and wait > within_s:
            return TooLate(f"the answer would take {wait:.2f} s, the caller gives {within_s:.2f} s")
        return None

    def admit(self, items: Sequence[Item], now: float) -> None:
        """Queues all texts of a request, or none.

        A request of more texts than the whole queue is admitted only when nothing waits.

        Raises:
            Overloaded: It is refused.
        """
        tokens = sum(len(item.ids) for item in items)
        refused = self.refusal(len(items), tokens, min(item.deadline for item in items) - now if items else math.inf)
        if refused:
            raise refused
        self._queue.extend(items)
        self._arrivals.extend([now] * len(items))
        self._queued_tokens += tokens

    def take(self, worker: int, now: float) -> tuple[Batch | None, list[Item], float | None]:
        """The next batch for a free worker, the texts that came too late, and when to ask again.

        The third value is a time from now, given when waiting a little makes a better batch.
        """
        late = self._drop_late(now)
        if not self._queue:
            return None, late, None
        pause = self._linger(now)
        if pause > 0:
            return None, late, pause
        batch = self._cut(now, late)
        if not batch.items:
            return None, late, None
        self._running[worker] = batch
        return batch, late, None

    def finish(self, worker: int, seconds: float) -> None:
        """Frees the worker and learns from the time its batch took."""
        batch = self._running.pop(worker)
        if seconds > 0 and batch.tokens:
            rate = batch.tokens / seconds
            weight = _SMOOTHING * min(1.0, batch.tokens / self.limits.max_batch_tokens * 4)
            self._rate = rate if self._rate is None else self._rate + weight * (rate - self._rate)

    def drain(self) -> list[Item]:
        """Empties the queue and returns what waited."""
        items = [item for item in self._queue if not item.cancelled]
        self._queue.clear()
        self._arrivals.clear()
        self._queued_tokens = 0
        return items

    def _retry_after(self) -> float:
        return max(1.0, math.ceil(self.wait_s()))

    def _linger(self, now: float) -> float:
        """How long to wait for a fuller batch; 0 to start now."""
        if not self._running or self._full():
            return 0.0
        average = sum(len(batch.items) for batch in self._running.values()) / len(self._running)
        if self.queued >= average or self._rate is None:
            return 0.0
        expected = sum(batch.tokens for batch in self._running.values()) / len(self._running) / self._rate
        patience = min(self.limits.linger_s, expected * _PATIENCE)
        return max(0.0, min(self._arrivals[0] + patience, self._arrivals[-1] + self.limits.gap_s) - now)

    def _full(self) -> bool:
        enough = min(self.limits.enough_tokens, self.limits.max_batch_tokens)
        return self.queued >= self.limits.max_batch_texts or self._queued_tokens >= enough

    def _cut(self, now: float, late: list[Item]) -> Batch:
        """The oldest texts that fit one batch, shared evenly while several workers are free; adds to `late`."""
        free = max(1, self.limits.workers - len(self._running))
        most = min(self.limits.max_batch_texts, math.ceil(self.queued / free))
        items: list[Item] = []
        tokens = 0
        while self._queue and len(items) < most:
            size = len(self._queue[0].ids)
            if items and tokens + size > self.limits.max_batch_tokens:
                break
            item = self._queue.popleft()
            self._arrivals.popleft()
            self._queued_tokens -= size
            if item.cancelled:
                continue
            if item.deadline <= now:
                late.append(item)
                continue
            items.append(item)
            tokens += size
        return Batch(items, tokens)

    def _drop_late(self, now: float) -> list[Item]:
        """Removes cancelled and expired texts from the front; those behind it are seen when their turn comes."""
        late: list[Item] = []
        while self._queue and (self._queue[0].cancelled or self._queue[0].deadline <= now):
            item = self._queue.popleft()
            self._arrivals.popleft()
            self._queued_tokens -= len(item.ids)
            if not item.cancelled:
                late.append(item)
        return late
