"""A circuit breaker: an upstream that fails is left alone for a while, then tried with a few calls.

    closed ──failures──> open ──time──> half-open ──successes──> closed
                           ^──────── one failure ────┘

It opens after some failures in a row, or when their share of a rolling window is too high. It stays open for
`open_s`, doubled with every trial that failed, and varied by a quarter so that many gateways do not try at the
same moment. Half-open it lets `probes` calls through at once, and closes after as many successes. Outcomes of
calls that began in an earlier state say nothing any more. Nothing waits here, and time and chance are
arguments. One event loop owns a breaker: it is not safe with threads.

ADR 15 says why this is none of the libraries.
"""

from collections.abc import Callable
from random import random
from time import monotonic
from typing import Literal

from leitstand.specs.resilience import BreakerSpec

__all__ = ["REFUSED", "Breaker", "Outcome", "State"]

State = Literal["closed", "half-open", "open"]
Outcome = Literal["succeeded", "failed", "ignored"]

REFUSED = -1
SLICES = 10
JITTER = 0.25


class Breaker:
    """The breaker of one upstream.

    Args:
        spec: When it opens, and for how long.
        clock: Seconds that never go back.
        chance: A number in [0, 1).
        on_change: Called with the new state.
    """

    def __init__(
        self,
        spec: BreakerSpec,
        *,
        clock: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random,
        on_change: Callable[[State], None] | None = None,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._chance = chance
        self._on_change = on_change
        self._window = _Window(spec.window_s / SLICES)
        self._state: State = "closed"
        self._epoch = 0
        self._in_a_row = 0
        self._opened_again = 0
        self._open_until = 0.0
        self._probing = 0
        self._proven = 0

    @property
    def state(self) -> State:
        """As the last call left it: an open one becomes half-open only when somebody asks."""
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call may be let through; 0 unless open."""
        return max(0.0, self._open_until - self._clock()) if self._state == "open" else 0.0

    def enter(self) -> int:
        """A ticket to hand back with `leave`, or `REFUSED`."""
        if self._state == "closed":
            return self._epoch
        if self._state == "open":
            if self._clock() < self._open_until:
                return REFUSED
            self._turn("half-open")
        if self._probing >= self._spec.probes:
            return REFUSED
        self._probing += 1
        return self._epoch

    def leave(self, ticket: int, outcome: Outcome) -> None:
        """Tells how the call ended; exactly once per ticket. `ignored` only gives the place back."""
        if ticket != self._epoch or not self._spec.enabled:
            return
        if self._state == "half-open":
            self._probing -= 1
            if outcome == "failed":
                self._open()
            elif outcome == "succeeded":
                self._proven += 1
                if self._proven >= self._spec.probes:
                    self._opened_again = 0
                    self._turn("closed")
        elif outcome == "succeeded":
            self._in_a_row = 0
            self._window.add(self._clock(), failed=False)
        elif outcome == "failed":
            self._in_a_row += 1
            self._window.add(self._clock(), failed=True)
            if self._must_open():
                self._open()

    def _must_open(self) -> bool:
        if self._in_a_row >= self._spec.consecutive:
            return True
        calls, failed = self._window.counts(self._clock())
        return calls >= self._spec.min_calls and failed >= self._spec.failure_share * calls

    def _open(self) -> None:
        doubled = self._spec.open_s * 2.0 ** min(self._opened_again, 30)
        varied = 1 - JITTER + 2 * JITTER * self._chance()
        self._open_until = self._clock() + min(doubled, self._spec.max_open_s) * varied
        self._opened_again += 1
        self._turn("open")

    def _turn(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._in_a_row = self._probing = self._proven = 0
        self._window.clear()
        if self._on_change is not None:
            self._on_change(state)


class _Window:
    """Calls and failures of the last `SLICES` slices of time; the present one is not full yet."""

    __slots__ = ("_calls", "_failed", "_newest", "_slice_s")

    def __init__(self, slice_s: float) -> None:
        self._slice_s = slice_s
        self._newest = 0
        self.clear()

    def clear(self) -> None:
        self._calls = [0] * SLICES
        self._failed = [0] * SLICES

    def add(self, now: float, *, failed: bool) -> None:
        place = self._advance(now) % SLICES
        self._calls[place] += 1
        self._failed[place] += failed

    def counts(self, now: float) -> tuple[int, int]:
        self._advance(now)
        return sum(self._calls), sum(self._failed)

    def _advance(self, now: float) -> int:
        present = int(now / self._slice_s)
        if present != self._newest:
            for slice_ in range(max(self._newest + 1, present - SLICES + 1), present + 1):
                self._calls[slice_ % SLICES] = self._failed[slice_ % SLICES] = 0
            self._newest = present
        return present
