"""The circuit breaker with a clock and chance of the test's own."""

import pytest

from leitstand.specs.resilience import BreakerSpec
from services.breakers import REFUSED, Breaker, State
from services.retries import RetryBudget, backoff_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A breaker of ten seconds' memory that opens for a second, without jitter."""

    def __init__(self, **spec: float) -> None:
        self.clock, self.chance, self.turns = Clock(), 0.5, list[State]()
        chosen = {"min_calls": 10, "consecutive": 5, "open_s": 1.0, "max_open_s": 8.0, "probes": 2} | spec
        self.breaker = Breaker(
            BreakerSpec.model_validate(chosen), clock=self.clock, chance=lambda: self.chance,
            on_change=self.turns.append,
        )  # fmt: skip

    def calls(self, outcomes: str) -> None:
        """One after the other: `s` succeeds, `f` fails, `i` says nothing."""
        for outcome in outcomes:
            ticket = self.breaker.enter()
            assert ticket != REFUSED
            self.breaker.leave(ticket, {"s": "succeeded", "f": "failed", "i": "ignored"}[outcome])  # type: ignore[arg-type]

    def open(self) -> None:
        self.calls("fffff")
        assert self.breaker.state == "open"


def test_failures_in_a_row_open_it_and_nobody_gets_through() -> None:
    bench = Bench()
    bench.calls("ffff")
    assert bench.breaker.state == "closed"
    bench.calls("f")
    assert (bench.breaker.state, bench.breaker.enter()) == ("open", REFUSED)
    assert bench.breaker.retry_after_s == pytest.approx(1.0)


def test_a_success_starts_the_count_of_failures_in_a_row_again() -> None:
    bench = Bench()
    bench.calls("ffffs" + "ffff")
    assert bench.breaker.state == "closed" and bench.turns == []


def test_the_share_of_failures_opens_it_once_there_are_enough_calls() -> None:
    bench = Bench(consecutive=100)
    bench.calls("sf" * 4 + "s")
    assert bench.breaker.state == "closed", "nine calls are too few"
    bench.calls("f")
    assert bench.breaker.state == "open"


def test_failures_that_are_older_than_the_window_do_not_count() -> None:
    bench = Bench(consecutive=100)
    bench.calls("fsfsfsfs")
    bench.clock.now += 11
    bench.calls("ssfs" * 10)
    assert bench.breaker.state == "closed"


def test_what_says_nothing_neither_opens_nor_closes_it() -> None:
    bench = Bench()
    bench.calls("ffff" + "i" * 100)
    assert bench.breaker.state == "closed"
    bench.calls("f")
    bench.clock.now += 1.01
    bench.calls("i" * 10)
    assert bench.breaker.state == "half-open"
    bench.calls("ss")
    assert bench.breaker.state == "closed"


def test_it_is_tried_with_a_few_calls_at_once_and_closes_when_they_succeed() -> None:
    bench = Bench()
    bench.open()
    bench.clock.now += 0.99
    assert bench.breaker.enter() == REFUSED
    bench.clock.now += 0.02
    first, second = bench.breaker.enter(), bench.breaker.enter()
    assert bench.breaker.enter() == REFUSED, "two probes are under way"
    bench.breaker.leave(first, "succeeded")
    assert bench.breaker.state == "half-open"
    bench.breaker.leave(second, "succeeded")
    assert (bench.breaker.state, bench.turns) == ("closed", ["open", "half-open", "closed"])


def test_every_failed_trial_doubles_the_pause_up_to_a_bound_and_success_resets_it() -> None:
    bench = Bench()
    bench.open()
    for pause in (2.0, 4.0, 8.0, 8.0, 8.0):
        bench.clock.now += bench.breaker.retry_after_s + 0.001
        bench.calls("f")
        assert bench.breaker.retry_after_s == pytest.approx(pause)
    bench.clock.now += 8.1
    bench.calls("ss")
    bench.open()
    assert bench.breaker.retry_after_s == pytest.approx(1.0)


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_the_pause_varies_by_a_quarter(chance: float, pause: float) -> None:
    bench = Bench()
    bench.chance = chance
    bench.open()
    assert bench.breaker.retry_after_s == pytest.approx(pause)


def test_calls_that_began_before_a_change_say_nothing_about_what_is_now() -> None:
    bench = Bench()
    old = [bench.breaker.enter() for _ in range(20)]
    bench.open()
    bench.breaker.leave(old[0], "succeeded")
    bench.clock.now += 1.01
    probe = bench.breaker.enter()
    for ticket in old[1:]:
        bench.breaker.leave(ticket, "failed")
    assert bench.breaker.state == "half-open"
    bench.breaker.leave(probe, "succeeded")
    bench.calls("s")
    assert bench.breaker.state == "closed"


def test_one_that_is_switched_off_never_opens() -> None:
    bench = Bench(enabled=False)
    bench.calls("f" * 100)
    assert bench.breaker.state == "closed"


def test_a_spent_budget_allows_a_retry_again_after_enough_requests() -> None:
    budget = RetryBudget(0.1, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend() and not budget.spend()


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0, 0)
    budget.earn()
    assert not budget.spend()


def test_pauses_grow_and_differ() -> None:
    pauses = [[backoff_s(retry, 0.025) for _ in range(200)] for retry in (1, 2, 3)]
    assert [0.9 < max(each) / (0.025 * 2**n) <= 1 for n, each in enumerate(pauses)] == [True] * 3
    assert min(pauses[2]) < 0.01
