"""Packing loses no token, and the scheduler loses no text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.engines.packing import pack
from services.scheduling import Item, Limits, Overloaded, Scheduler

lengths = st.lists(st.integers(1, 130), min_size=1, max_size=80)


@given(lengths, st.sampled_from([0, 16, 64, 200]))
def test_every_token_stands_once_in_its_text_and_order(sizes: list[int], row_tokens: int) -> None:
    ids = [list(range(1000 * text + 1, 1000 * text + 1 + size)) for text, size in enumerate(sizes)]
    packed = pack(ids, row_tokens=row_tokens)
    for text, expected in enumerate(ids):
        rows, columns = np.nonzero(packed.segments == text)
        assert len(set(rows.tolist())) == 1, "a text never spans rows"
        assert packed.input_ids[rows, columns].tolist() == expected
        assert packed.position_ids[rows, columns].tolist() == list(range(len(expected)))
    assert (packed.segments >= 0).sum() == sum(sizes)
    assert packed.order.tolist() == list(range(len(ids)))


@given(st.lists(st.integers(5, 60), min_size=32, max_size=64))
def test_full_batches_are_packed_nearly_without_padding(sizes: list[int]) -> None:
    assert pack([[1] * size for size in sizes]).fill > 0.75


steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(1, 6), st.integers(1, 128)),
        st.tuples(st.just("take"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 1), st.just(0)),
    ),
    max_size=120,
)


@given(steps, st.floats(0.001, 0.2))
def test_every_admitted_text_is_computed_once_in_order_or_handed_back(steps: list, tick: float) -> None:
    limits = Limits(max_batch_texts=8, max_batch_tokens=256, max_queue=20, deadline_s=1.0, workers=2)
    scheduler, now, running = Scheduler(limits), 0.0, set()
    admitted: list[Item] = []
    out: list[Item] = []
    for kind, first, second in steps:
        now += tick
        if kind == "admit":
            new = [Item([1] * second, now + 1.0) for _ in range(first)]
            try:
                scheduler.admit(new, now)
            except Overloaded:
                continue
            admitted += new
        elif kind == "take" and first not in running:
            batch, late, _ = scheduler.take(first, now)
            out += late
            assert all(item.deadline <= now for item in late)
            if batch is not None:
                running.add(first)
                out += batch.items
                assert len(batch.items) <= 8
                assert batch.tokens <= 256 or len(batch.items) == 1
        elif kind == "finish" and first in running:
            running.discard(first)
            scheduler.finish(first, tick)
        assert scheduler.queued <= 20
    assert [id(item) for item in out] == [id(item) for item in admitted[: len(out)]]
    assert len(out) + scheduler.queued == len(admitted)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.001, 1.0)), max_size=80), st.floats(0.001, 0.2))
def test_whatever_time_callers_give_nothing_expired_is_computed_and_nothing_is_lost(events: list, tick: float) -> None:
    scheduler, now, running = Scheduler(Limits(max_batch_texts=3, deadline_s=1.0)), 0.0, False
    admitted: list[Item] = []
    computed: list[Item] = []
    expired: list[Item] = []
    for count, within_s in events:
        now += tick
        if count:
            new = [Item([1], now + within_s) for _ in range(count)]
            try:
                scheduler.admit(new, now)
            except Overloaded:
                continue
            admitted += new
            continue
        if running:
            scheduler.finish(0, tick)
        batch, late, _ = scheduler.take(0, now)
        running = batch is not None
        expired += late
        if batch is not None:
            assert batch.items and all(item.deadline > now for item in batch.items)
            computed += batch.items
        assert all(item.deadline <= now for item in late)
    places = {id(item): place for place, item in enumerate(admitted)}
    order = [places[id(item)] for item in computed]
    assert order == sorted(order)
    assert len({*order, *(places[id(item)] for item in expired)}) == len(computed) + len(expired)
    assert len(computed) + len(expired) + scheduler.queued == len(admitted)
