"""One gate per upstream: its breaker, its bulkhead, and its budgets of retries and hedges.

A bulkhead bounds the calls that one upstream holds at once, so that one that hangs cannot take every place of the
gateway. Nothing queues here: what finds the gate shut goes to the fallback, or is refused at once. Each
gateway process learns for itself; nothing is shared between replicas.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import structlog

from leitstand.specs.resilience import ResilienceSpec
from leitstand.types import Target
from services.breakers import REFUSED, Breaker, Outcome, State
from services.gateway_metrics import BREAKER_OPENED, BREAKER_STATE, UPSTREAM_IN_FLIGHT
from services.retries import RetryBudget
from services.upstreams import UpstreamFailed

__all__ = ["Gate", "Gates", "Specs"]

Specs = Callable[[str], ResilienceSpec]
"""The resilience of a use case; cheap to call again."""

SHARE = 0.75
MEMORY = 128
LEARN_EVERY = 16
LEVELS: dict[State, int] = {"closed": 0, "half-open": 1, "open": 2}

logger = structlog.get_logger()


class Gate:
    """What stands before one upstream of one use case.

    Args:
        use_case: Whose upstream it is.
        target: The upstream.
        spec: The use case's resilience.
        limit: Calls at once.
        patience_s: A time-out after less than that says nothing about the upstream.
    """

    def __init__(self, use_case: str, target: Target, spec: ResilienceSpec, limit: int, patience_s: float) -> None:
        self.target = target
        self.spec = spec
        self.in_flight = 0
        self.retries = RetryBudget(spec.retries.share, spec.retries.reserve)
        self.hedges = RetryBudget(spec.hedging.max_share, 1.0)
        self._limit = limit
        self._patience_s = patience_s
        self._labels = (use_case, str(target.version), target.url.split("://", 1)[-1].rsplit("@", 1)[-1])
        self._latencies: list[float] = []
        self._answers = 0
        self._slow_s: float | None = None
        self.breaker = Breaker(spec.breaker, on_change=self._changed)
        BREAKER_STATE.labels(*self._labels).set(0)
        UPSTREAM_IN_FLIGHT.labels(*self._labels).set_function(lambda: self.in_flight)

    def enter(self) -> int:
        """A ticket for one call, to be handed back with `leave`.

        Raises:
            UpstreamFailed: The breaker is open, or the upstream holds too many calls.
        """
        if self.in_flight >= self._limit:
            raise UpstreamFailed(f"{self.in_flight} calls of {self.target.url} are not answered yet", "crowded")
        ticket = self.breaker.enter()
        if ticket == REFUSED:
            wait = self.breaker.retry_after_s
            raise UpstreamFailed(f"{self.target.url} failed lately and is left alone", "open", retry_after_s=wait)
        self.in_flight += 1
        return ticket

    def leave(self, ticket: int, outcome: Outcome) -> None:
        """Gives the place back, and tells the breaker."""
        self.in_flight -= 1
        self.breaker.leave(ticket, outcome)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A place in the bulkhead for as long as an answer that has begun is still being written."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def is_evidence(self, error: UpstreamFailed, given_s: float) -> bool:
        """Whether a failure says anything about the upstream: not when it sheds load, or when it had no time."""
        if error.reason == "timeout":
            return given_s >= self._patience_s
        return not error.alive

    def learn(self, seconds: float) -> None:
        """Remembers how long an answer took, for hedging."""
        self._answers += 1
        place = self._answers % MEMORY
        if len(self._latencies) < MEMORY:
            self._latencies.append(seconds)
        else:
            self._latencies[place] = seconds
        if self._answers % LEARN_EVERY == 0:
            ordered = sorted(self._latencies)
            self._slow_s = ordered[min(len(ordered) - 1, int(self.spec.hedging.quantile * len(ordered)))]

    @property
    def slow_s(self) -> float | None:
        """The latency that hedging starts at; None before enough was seen."""
        return self._slow_s

    def forget(self) -> None:
        """Takes its metrics away."""
        for metric in (BREAKER_STATE, UPSTREAM_IN_FLIGHT):
            metric.remove(*self._labels)

    def _changed(self, state: State) -> None:
        BREAKER_STATE.labels(*self._labels).set(LEVELS[state])
        if state == "open":
            BREAKER_OPENED.labels(*self._labels[:2]).inc()
        say = logger.warning if state == "open" else logger.info
        use_case, version, where = self._labels
        say("A breaker turned", use_case=use_case, version=version, upstream=where, state=state)


class Gates:
    """The gates of one gateway process, made when first needed.

    Args:
        specs: The resilience of each use case.
        max_in_flight: The gateway's own limit.
        deadline_s: The gateway's own deadline.
    """

    def __init__(self, specs: Specs, *, max_in_flight: int = 512, deadline_s: float = 5.0) -> None:
        self._specs = specs
        self._share = max(1, math.ceil(max_in_flight * SHARE))
        self._deadline_s = deadline_s
        self._gates: dict[tuple[str, Target], Gate] = {}

    def of(self, use_case: str, target: Target) -> Gate:
        """The gate of that upstream."""
        gate = self._gates.get((use_case, target))
        if gate is None:
            spec = self._specs(use_case)
            patience_s = min(spec.breaker.patience_s, self._deadline_s / 4)
            limit = spec.max_concurrent or self._share
            gate = self._gates[use_case, target] = Gate(use_case, target, spec, limit, patience_s)
        return gate

    def spec(self, use_case: str) -> ResilienceSpec:
        """The resilience of a use case."""
        return self._specs(use_case)

    def keep(self, use_case: str, targets: Collection[Target]) -> None:
        """Forgets the gates of a use case's other upstreams, but for those that hold calls."""
        gone = [key for key in self._gates if key[0] == use_case and key[1] not in targets]
        for key in gone:
            if not self._gates[key].in_flight:
                self._gates.pop(key).forget()

    def states(self) -> dict[str, dict[str, State]]:
        """Use case and version to the state of its breaker; of several upstreams of a version, the worst."""
        states: dict[str, dict[str, State]] = {}
        for (use_case, target), gate in self._gates.items():
            found = states.setdefault(use_case, {})
            before = found.get(str(target.version), "closed")
            found[str(target.version)] = max(before, gate.breaker.state, key=LEVELS.__getitem__)
        return states
