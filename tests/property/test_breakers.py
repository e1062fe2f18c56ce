"""Breaker and retry budget under any order of events."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leitstand.specs.resilience import BreakerSpec
from services.breakers import REFUSED, Breaker
from services.retries import RetryBudget

OUTCOMES = st.sampled_from(["succeeded", "failed", "ignored"])


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, end in any order and way, and time passes."""

    @initialize(
        probes=st.integers(1, 4), consecutive=st.integers(1, 6), min_calls=st.integers(1, 10),
        share=st.floats(0.01, 1), open_s=st.floats(0.1, 5), longest=st.floats(1, 4), chance=st.floats(0, 0.999),
    )  # fmt: skip
    def begin(
        self, probes: int, consecutive: int, min_calls: int, share: float, open_s: float, longest: float, chance: float
    ) -> None:
        self.now, self.turns = 0.0, 0
        self.spec = BreakerSpec(
            probes=probes, consecutive=consecutive, min_calls=min_calls, failure_share=share, open_s=open_s,
            max_open_s=open_s * longest,
        )  # fmt: skip
        self.breaker = Breaker(
            self.spec, clock=lambda: self.now, chance=lambda: chance, on_change=lambda _: self._turned()
        )
        self.running: list[tuple[int, int]] = []  # ticket, and the number of turns when it began

    def _turned(self) -> None:
        self.turns += 1

    @rule()
    def enter(self) -> None:
        before = self.breaker.state
        ticket = self.breaker.enter()
        if before == "closed":
            assert ticket != REFUSED, "a closed breaker refuses nobody"
        if ticket != REFUSED:
            assert self.breaker.state != "open"
            self.running.append((ticket, self.turns))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=OUTCOMES)
    def leave(self, data: st.DataObject, outcome: str) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        ticket, began = self.running.pop(place)
        before, turns = self.breaker.state, self.turns
        self.breaker.leave(ticket, outcome)  # type: ignore[arg-type]
        if began != turns:
            assert self.breaker.state == before, "a call of an earlier state changes nothing"

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_more_probes_than_allowed(self) -> None:
        if self.breaker.state == "half-open":
            probing = sum(began == self.turns for _, began in self.running)
            assert probing <= self.spec.probes

    @invariant()
    def an_open_one_is_open_for_a_bounded_time(self) -> None:
        assert self.breaker.retry_after_s <= self.spec.max_open_s * 1.25

    @rule()
    def an_upstream_that_is_well_again_is_used_again(self) -> None:
        """From wherever it is: once the calls under way ended, time and successes close it."""
        while self.running:
            self.breaker.leave(self.running.pop()[0], "ignored")
        self.now += self.spec.max_open_s * 1.25 + 0.001
        for _ in range(self.spec.probes):
            ticket = self.breaker.enter()
            assert ticket != REFUSED
            self.breaker.leave(ticket, "succeeded")
        assert self.breaker.state == "closed"


TestBreaker = BreakerMachine.TestCase


@given(
    share=st.floats(0, 1), reserve=st.integers(0, 20),
    events=st.lists(st.booleans(), max_size=300), start=st.integers(0, 300),
)  # fmt: skip
def test_in_any_stretch_retries_are_bounded_by_share_and_reserve(
    share: float, reserve: int, events: list[bool], start: int
) -> None:
    budget = RetryBudget(share, reserve)
    outcomes = [budget.spend() if retry else budget.earn() for retry in events]
    stretch = list(zip(events, outcomes, strict=True))[start:]
    requests = sum(not retry for retry, _ in stretch)
    retries = sum(bool(allowed) for retry, allowed in stretch if retry)
    assert retries <= max(reserve, 1) + share * requests + 1e-6
