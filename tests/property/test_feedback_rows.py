"""Feedback that becomes training rows: no order, no leaks, monotone weights, bad sources out and honest ones in."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.rows import normalise
from leitstand.usecase import Expectations, FeedbackSpec, TrustSpec
from models.feedback import Boundaries, FeedbackRow, join_texts, recency_weight, select_rows, standing_labels
from models.source_trust import Guesses, Opinion, examine_sources, holm
from tests.feedback_for_tests import said

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
LABELS = tuple(f"queue_{n}" for n in range(12))
BASE = {f"base text number {n}": LABELS[n % 12] for n in range(240)}
EDGES = Boundaries(
    base=BASE, rows=len(BASE), labels=LABELS,
    test=frozenset({"a text of the test split"}), golden=frozenset({"a golden text"}),
)  # fmt: skip
LIMITS = Expectations(min_chars=3, max_chars=200)
OPEN = FeedbackSpec(new_labels="allow", min_rows_per_new_label=2, max_source_share=1.0)

TEXTS = st.sampled_from(
    ["a text of the test split", "A  golden TEXT", "base text number 3", *(f"text {n} of a user" for n in range(9))]
)
ROWS = st.lists(
    st.builds(
        FeedbackRow, text=TEXTS, label=st.sampled_from([*LABELS[:4], "fresh"]), source=st.sampled_from("abc"),
        at=st.integers(0, 90).map(lambda days: NOW - timedelta(days=days)),
        request_id=st.sampled_from(["r1", "r2"]), index=st.integers(0, 1),
    ),
    max_size=25,
)  # fmt: skip


@given(rows=ROWS, random=st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_feedback_changes_nothing(rows: list[FeedbackRow], random) -> None:
    mixed = [*rows, *rows[:3]]
    random.shuffle(mixed)
    assert select_rows(rows, EDGES, OPEN, LIMITS) == select_rows(mixed, EDGES, OPEN, LIMITS)


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_no_row_is_trained_on_that_stands_in_test_golden_or_base_and_none_twice(rows: list[FeedbackRow]) -> None:
    found = select_rows(rows, EDGES, OPEN, LIMITS)
    keys = [normalise(row.text) for row in [*found.train, *found.test]]
    assert not set(keys) & (EDGES.test | EDGES.golden | set(BASE))
    assert len(keys) == len(set(keys))
    assert all(0 < row.weight <= 1 for row in found.train)


@given(old=st.integers(0, 400), older=st.integers(0, 400), half=st.integers(1, 90))
def test_weights_fall_with_age_and_halve_after_the_half_life(old: int, older: int, half: int) -> None:
    half_life = timedelta(days=half)
    weights = [recency_weight(timedelta(days=days), half_life) for days in sorted((old, old + older))]
    assert weights[0] >= weights[1] > 0
    assert recency_weight(half_life, half_life) == pytest.approx(0.5)


@given(share=st.floats(0.05, 0.5), more=st.floats(0, 0.2))
@settings(max_examples=20, deadline=None)
def test_a_text_that_is_held_out_once_stays_held_out(share: float, more: float) -> None:
    rows = [FeedbackRow(f"text {n} of a user", LABELS[n % 3], "a", NOW) for n in range(60)]
    few = select_rows(rows[:40], EDGES, OPEN.model_copy(update={"hold_out": share}), LIMITS)
    many = select_rows(rows, EDGES, OPEN.model_copy(update={"hold_out": min(share + more, 0.5)}), LIMITS)
    assert {row.text for row in few.test} <= {row.text for row in many.test}


def simulated(seed: int, bad: dict[str, str], *, honest: int = 4, rows: int = 60, accuracy: float = 0.92):
    """Sources that label the model's texts: mostly corrections, with a little noise; `bad` ones follow a rule.

    `random`: any label. `flip`: every row of the first two queues gets the other's label. `one`: always the same label.
    """
    random = np.random.default_rng(seed)
    opinions, ranked = [], {}
    for source in [*(f"agent{n}" for n in range(honest)), *bad]:
        for row in range(rows):
            key = f"shared {row}" if row % 4 == 0 else f"{source} {row}"
            truth = row % 2 if bad.get(source) == "flip" else (row * 7) % 12
            if key.startswith("shared"):
                truth = (row * 7) % 12
            rest = [n for n in random.permutation(12) if n != truth]
            right = random.random() < accuracy
            place = 0 if right else int(random.integers(1, 4))
            order = [*rest[:place], truth, *rest[place:]]
            ranked.setdefault(key, [LABELS[n] for n in order])
            label = truth if random.random() < 0.95 else int(random.integers(12))
            match bad.get(source):
                case "random":
                    label = int(random.integers(12))
                case "flip":
                    label = 1 - truth if truth < 2 else truth
                case "one":
                    label = 5
            opinions.append(Opinion(source, key, LABELS[label]))
    return opinions, Guesses(ranked, frozenset(LABELS), miss_rate=0.02)


@pytest.mark.parametrize("kind", ["random", "flip", "one"])
def test_a_poisoned_source_is_quarantined_and_honest_ones_stay(kind: str) -> None:
    for seed in range(10):
        opinions, guesses = simulated(seed, {"mallory": kind})
        found = examine_sources(opinions, BASE, guesses, TrustSpec())
        assert {item.source for item in found if item.failed} == {"mallory"}, seed


def test_without_a_model_agreement_alone_finds_a_source_of_random_labels() -> None:
    for seed in range(10):
        opinions, _ = simulated(seed, {"mallory": "random"})
        found = examine_sources(opinions, {}, None, TrustSpec())
        assert {item.source for item in found if item.failed} == {"mallory"}, seed


def test_honest_sources_are_quarantined_no_more_often_than_the_policy_says() -> None:
    alarms = 0
    for seed in range(200):
        opinions, guesses = simulated(seed, {}, honest=5, rows=30)
        alarms += any(item.failed for item in examine_sources(opinions, BASE, guesses, TrustSpec(alpha=0.05)))
    assert alarms <= 10


def test_an_honest_source_that_only_sends_corrections_stays() -> None:
    for seed in range(20):
        opinions, guesses = simulated(seed, {}, honest=1, rows=80, accuracy=0.0)
        assert not any(item.failed for item in examine_sources(opinions, {}, guesses, TrustSpec()))


def test_two_sources_that_contradict_each_other_without_other_evidence_both_leave() -> None:
    opinions = [Opinion(s, f"t{n}", LABELS[(n + shift) % 12]) for s, shift in (("a", 0), ("b", 1)) for n in range(40)]
    failed = {item.source for item in examine_sources(opinions, {}, None, TrustSpec()) if item.failed}
    assert failed == {"a", "b"}


def test_a_few_labels_are_no_evidence_against_a_source() -> None:
    opinions, guesses = simulated(1, {"mallory": "random"}, rows=9)
    assert examine_sources(opinions, BASE, guesses, TrustSpec()) == []


@given(values=st.lists(st.floats(0, 1), max_size=8))
def test_corrected_p_values_are_never_smaller_and_keep_their_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(before <= after <= 1 for before, after in zip(values, adjusted, strict=True))
    pairs = sorted(zip(values, adjusted, strict=True))
    assert [after for _, after in pairs] == sorted(adjusted)


def rows_of(label: str, count: int, source: str = "ann", start: int = 0) -> list[FeedbackRow]:
    return [FeedbackRow(f"{label} question {n}", label, source, NOW - timedelta(hours=n))
        for n in range(start, start + count)]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "admitted"),
    [
        ({"new_labels": "allow"}, True), ({"new_labels": "ask"}, False), ({"new_labels": "never"}, False),
        ({"new_labels": "ask", "approved_labels": ("wire",)}, True),
        ({"new_labels": "never", "approved_labels": ("wire",)}, False),
        ({"new_labels": "allow", "min_rows_per_new_label": 31}, False),
    ],
)  # fmt: skip
def test_new_labels_are_admitted_by_policy_only(policy: dict, admitted: bool) -> None:
    found = select_rows(rows_of("wire", 30), EDGES, FeedbackSpec(max_source_share=1.0, **policy), LIMITS)
    assert found.new_labels == (("wire",) if admitted else ())
    assert len(found.train) + len(found.test) + len(found.set_aside) == 30
    assert bool(found.set_aside) != admitted


def test_a_source_is_capped_at_its_share_and_keeps_its_newest_rows() -> None:
    policy = FeedbackSpec(max_source_share=0.1, hold_out=0)
    found = select_rows(rows_of("queue_1", 60), EDGES, policy, LIMITS)
    assert len(found.train) == 30  # a tenth of 240 base rows and 60 of feedback
    assert {row.text for row in found.train} == {f"queue_1 question {n}" for n in range(30)}
    assert Counter(item.reason for item in found.set_aside) == {"source_share": 30}


def test_texts_under_several_labels_are_settled_by_majority_or_set_aside() -> None:
    def opinion(text: str, label: str, source: str) -> FeedbackRow:
        return FeedbackRow(text, label, source, NOW)

    rows = [opinion("where is it", LABELS[n], s) for n, s in ((1, "a"), (1, "b"), (2, "c"))]
    rows += [opinion("which one", LABELS[n], s) for n, s in ((3, "a"), (4, "b"))]
    rows += [opinion("Base text  number 0", LABELS[0], "a"), opinion("base text number 1", LABELS[5], "a")]
    found = select_rows(rows, EDGES, FeedbackSpec(hold_out=0, max_source_share=1.0), LIMITS)
    assert [(row.text, row.label, row.sources) for row in found.train] == [("where is it", LABELS[1], ("a", "b"))]
    assert found.in_base == 1
    reasons = Counter(item.reason for item in found.set_aside)
    assert reasons == {"outvoted": 1, "conflicting_label": 2, "contradicts_base": 1}


def test_a_bad_text_is_set_aside_with_its_reason_and_masked() -> None:
    secret = FeedbackRow("4929 1234 5678 9012", LABELS[0], "a", NOW)
    found = select_rows([secret, FeedbackRow("ok", LABELS[0], "a", NOW)], EDGES, FeedbackSpec(), LIMITS)
    assert [item.reason for item in found.set_aside] == ["no_letters", "too_short"]
    assert "4929" not in found.set_aside[0].excerpt


def test_the_newest_label_of_a_source_stands_until_it_is_withdrawn_and_texts_may_be_gone() -> None:
    entries = [
        said("r1", "card", "ann", 1), said("r1", "cash", "ann", 2), said("r1", None, "bob", 3, rating=1),
        said("r2", "card", "ann", 1), said("r2", None, "ann", 2), said("r3", "card", "ann", 5, index=1),
        said("r4", "card", "ann", 6),
    ]  # fmt: skip
    standing = standing_labels(entries)
    assert [(e.request_id, e.label) for e in standing] == [("r1", "cash"), ("r3", "card"), ("r4", "card")]
    texts = {"r1": ["why"], "r3": ["one", "two"]}
    rows, missing = join_texts(standing, lambda request_id: texts.get(request_id, []))
    assert [(row.text, row.label) for row in rows] == [("why", "cash"), ("two", "card")]
    assert missing == 1
