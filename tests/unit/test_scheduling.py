"""The batcher's decisions with a made-up clock."""

import pytest

from services.scheduling import Item, Limits, Overloaded, Scheduler, TooLate


def items(count: int, tokens: int = 10, deadline: float = 2.0) -> list[Item]:
    return [Item([1] * tokens, deadline, index=index) for index in range(count)]


def measured(limits: Limits, tokens_per_s: float = 1000.0) -> Scheduler:
    """A scheduler that has seen one batch and knows the rate."""
    scheduler = Scheduler(limits)
    scheduler.admit(items(1, tokens=100, deadline=9.0), now=0.0)
    scheduler.take(0, now=0.0)
    scheduler.finish(0, 100 / tokens_per_s)
    return scheduler


def test_an_idle_worker_starts_at_once() -> None:
    scheduler = measured(Limits(workers=2))
    scheduler.admit(items(1), now=0.0)
    batch, late, again = scheduler.take(0, now=0.0)
    assert batch is not None
    assert len(batch.items) == 1
    assert (late, again) == ([], None)


def test_a_free_worker_waits_for_as_many_texts_as_the_other_computes() -> None:
    scheduler = measured(Limits(workers=2))
    scheduler.admit(items(8), now=0.0)
    first, _, _ = scheduler.take(0, now=0.0)
    assert first is not None
    assert len(first.items) == 4, "the free workers share what waits"
    scheduler.take(1, now=0.0)
    scheduler.finish(1, 0.04)
    scheduler.admit(items(1), now=0.05)
    batch, _, again = scheduler.take(1, now=0.05)
    assert batch is None
    assert again is not None
    assert 0 < again <= 0.025
    scheduler.admit(items(3), now=0.051)
    batch, _, _ = scheduler.take(1, now=0.051)
    assert batch is not None
    assert len(batch.items) == 4


def test_waiting_for_a_fuller_batch_ends() -> None:
    scheduler = measured(Limits(workers=2))
    scheduler.admit(items(8), now=0.0)
    scheduler.take(0, now=0.0)
    scheduler.take(1, now=0.0)
    scheduler.finish(1, 0.04)
    scheduler.admit(items(1), now=0.05)
    _, _, again = scheduler.take(1, now=0.05)
    assert again is not None
    batch, _, _ = scheduler.take(1, now=0.05 + again)
    assert batch is not None
    assert len(batch.items) == 1


def test_a_cold_estimate_sheds_nothing() -> None:
    scheduler = Scheduler(Limits(max_queue=100, deadline_s=0.001))
    for _ in range(100):
        scheduler.admit(items(1, tokens=128), now=0.0)
    assert scheduler.queued == 100


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    scheduler = measured(Limits(max_queue=4, deadline_s=100))
    scheduler.admit(items(4), now=0.0)
    with pytest.raises(Overloaded) as refused:
        scheduler.admit(items(1), now=0.0)
    assert refused.value.retry_after_s >= 1
    assert scheduler.queued == 4


def test_a_request_is_queued_whole_or_not_at_all() -> None:
    scheduler = measured(Limits(max_queue=4))
    scheduler.admit(items(3), now=0.0)
    with pytest.raises(Overloaded):
        scheduler.admit(items(2), now=0.0)
    assert scheduler.queued == 3


def test_work_that_cannot_meet_its_deadline_is_refused_on_arrival() -> None:
    scheduler = measured(Limits(deadline_s=1.0, max_queue=10_000), tokens_per_s=1000)
    scheduler.admit(items(100, tokens=10), now=0.0)
    with pytest.raises(Overloaded, match="would take"):
        scheduler.admit(items(1, tokens=10), now=0.0)


def test_texts_that_waited_too_long_are_handed_back() -> None:
    scheduler = measured(Limits())
    scheduler.admit(items(2, deadline=1.0), now=0.0)
    scheduler.admit(items(1, deadline=5.0), now=0.9)
    batch, late, _ = scheduler.take(0, now=2.0)
    assert len(late) == 2
    assert batch is not None
    assert len(batch.items) == 1


def test_cancelled_texts_are_never_computed() -> None:
    scheduler = measured(Limits())
    waiting = items(3)
    scheduler.admit(waiting, now=0.0)
    waiting[1].cancelled = True
    batch, late, _ = scheduler.take(0, now=0.0)
    assert late == []
    assert batch is not None
    assert [item.index for item in batch.items] == [0, 2]


def test_a_batch_is_bounded_by_tokens_and_by_texts() -> None:
    scheduler = measured(Limits(max_batch_tokens=100, max_batch_texts=64))
    scheduler.admit(items(20, tokens=30), now=0.0)
    batch, _, _ = scheduler.take(0, now=0.0)
    assert batch is not None
    assert batch.tokens == 90
    few = measured(Limits(max_batch_tokens=10_000, max_batch_texts=3))
    few.admit(items(20), now=0.0)
    batch, _, _ = few.take(0, now=0.0)
    assert batch is not None
    assert len(batch.items) == 3


def test_long_texts_are_not_overtaken() -> None:
    scheduler = measured(Limits(max_batch_tokens=128))
    scheduler.admit([Item([1] * 128, 9.0, index=0)], now=0.0)
    scheduler.admit(items(50, tokens=5), now=0.0)
    batch, _, _ = scheduler.take(0, now=0.0)
    assert batch is not None
    assert len(batch.items[0].ids) == 128


def test_draining_hands_back_everything_that_waits() -> None:
    scheduler = measured(Limits())
    scheduler.admit(items(5), now=0.0)
    assert len(scheduler.drain()) == 5
    assert scheduler.take(0, now=0.0) == (None, [], None)


def test_what_is_expired_when_its_turn_comes_is_not_computed_wherever_it_stands() -> None:
    scheduler = measured(Limits())
    patient, hurried, last = items(1), items(1, deadline=0.1), items(1)
    for each in (patient, hurried, last):
        scheduler.admit(each, now=0.0)
    batch, late, _ = scheduler.take(0, now=0.2)
    assert batch is not None
    assert (batch.items, late, scheduler.queued) == ([*patient, *last], hurried, 0)


def test_a_queue_of_expired_texts_makes_no_batch_and_keeps_the_worker_free() -> None:
    scheduler = measured(Limits())
    scheduler.admit(items(3, deadline=0.1), now=0.0)
    batch, late, again = scheduler.take(0, now=0.2)
    assert (batch, len(late), again, scheduler.busy) == (None, 3, None, 0)


def test_a_caller_in_a_hurry_is_told_at_once_that_it_will_be_too_late() -> None:
    scheduler = measured(Limits(), tokens_per_s=100.0)
    scheduler.admit(items(10), now=0.0)
    with pytest.raises(TooLate, match=r"the caller gives 0\.50 s"):
        scheduler.admit(items(1, deadline=0.5), now=0.0)
    with pytest.raises(TooLate):
        Scheduler(Limits()).admit(items(1, deadline=1.0), now=1.0)
    assert scheduler.queued == 10
