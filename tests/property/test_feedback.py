"""What feedback amounts to does not depend on how and when it arrives."""

import random
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from governance.feedback_log import effective
from leitstand.types import Feedback
from tests.rows_for_tests import NOON, said

LABELS = st.sampled_from([None, "a", "b", "c"])
ENTRIES = st.lists(
    st.builds(
        lambda number, label, rating, source, minute, answer: said(
            0, label, feedback_id=f"f{number}", request_id=f"r{answer}", rating=rating, source=source,
            at=NOON + timedelta(minutes=minute),
        ),
        st.integers(0, 10**6), LABELS, st.sampled_from([None, -1, 0, 1]), st.sampled_from(["x", "y", "z"]),
        st.integers(0, 5), st.integers(0, 1),
    ),
    max_size=12, unique_by=lambda entry: entry.feedback_id,
)  # fmt: skip


@given(ENTRIES, st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_labels(entries: list[Feedback], chance: random.Random) -> None:
    shuffled = [*entries, *entries[:3]]
    chance.shuffle(shuffled)
    assert effective(shuffled) == effective(entries)


@given(ENTRIES)
def test_a_label_stands_only_where_some_source_says_it_last(entries: list[Feedback]) -> None:
    for (request_id, index), entry in effective(entries).items():
        assert (entry.request_id, entry.index) == (request_id, index)
        if entry.label is not None:
            own = [e for e in entries if e.source == entry.source and e.request_id == request_id]
            newest = max((e for e in own if e.label or e.rating is None), key=lambda e: (e.at, e.feedback_id))
            assert newest.label == entry.label


@given(ENTRIES)
def test_what_settled_settles_again(entries: list[Feedback]) -> None:
    settled = effective(entries)
    assert effective(settled.values()) == settled
