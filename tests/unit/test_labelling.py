"""What is asked next, what an answer in the terminal means, and what a label records."""

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leitstand.commands.label_session import Item, Session
from leitstand.types import Feedback
from models.labelling import QUEUE_SCHEMA, choose, kept_inclusion, margins, opinion, top_guesses, weighted_accuracy
from tests.feedback_for_tests import LABELS, answers

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)


def keys(queue: pa.Table) -> list[tuple[str, int]]:
    return list(zip(queue["request_id"].to_pylist(), queue["index"].to_pylist(), strict=True))


def test_the_queue_holds_uncertain_rows_and_a_random_share_with_their_probabilities() -> None:
    window = answers(400, feedback=0.1)
    queue = choose(window, 50, random_share=0.2, seed=3)
    assert queue.schema == QUEUE_SCHEMA
    assert len(set(keys(queue))) == queue.num_rows == 50
    reasons = queue["reason"].to_pylist()
    assert (reasons.count("uncertain"), reasons.count("random")) == (40, 10)
    open_rows = sum(label is None for label in window["feedback_label"].to_pylist())
    assert set(queue["inclusion_probability"].to_pylist()) == {1.0, 10 / (open_rows - 40)}
    margin = np.array(queue["margin"])
    assert margin[:40].mean() < np.median(margins(window))


def test_the_order_of_the_window_changes_nothing() -> None:
    window = answers(200)
    mixed = window.take(pa.array(np.random.default_rng(1).permutation(200)))
    assert choose(window, 30, seed=5).equals(choose(mixed, 30, seed=5))
    assert not choose(window, 30, seed=5).equals(choose(window, 30, seed=6))


def test_near_copies_of_one_question_are_not_all_asked() -> None:
    window = answers(300)
    margin = margins(window)
    doubt = int(np.argmin(margin))
    copies = pa.concat_tables([window, *[window.slice(doubt, 1)] * 60])
    ids = [f"r{n}" for n in range(copies.num_rows)]
    copies = copies.set_column(0, "request_id", pa.array(ids))
    queue = choose(copies, 20, random_share=0)
    embedding = window["embedding"][doubt].as_py()
    place = {request: copies["embedding"][row].as_py() for row, request in enumerate(ids)}
    assert sum(place[request] == embedding for request, _ in keys(queue)) == 1


def test_without_embeddings_and_probabilities_the_lowest_scores_are_asked() -> None:
    window = answers(100, with_embeddings=False)
    queue = choose(window, 10, random_share=0)
    assert max(queue["score"].to_pylist()) <= sorted(window["score"].to_pylist())[10]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_small_window_is_asked_in_full(rows: int) -> None:
    queue = choose(answers(rows), 10)
    assert queue.num_rows == rows
    assert set(queue["inclusion_probability"].to_pylist()) <= {1.0}


def test_shadow_answers_are_not_asked() -> None:
    window = answers(20)
    place = window.column_names.index("route")
    assert choose(window.set_column(place, "route", pa.array(["shadow"] * 20)), 5).num_rows == 0


def test_weighting_by_inclusion_estimates_the_accuracy_of_the_whole_window() -> None:
    window = answers(500)
    sureness = margins(window).argsort().argsort() / 500
    right = np.random.default_rng(2).random(500) < 0.3 + 0.7 * sureness  # wrong where it is unsure
    truth = dict(zip(keys(window), right, strict=True))
    estimates, plain, covered = [], [], 0
    for seed in range(300):
        queue = choose(window, 100, random_share=0.3, seed=seed)
        correct = np.array([truth[key] for key in keys(queue)])
        value, error = weighted_accuracy(correct, np.array(queue["inclusion_probability"]))
        estimates.append(value)
        plain.append(correct.mean())
        covered += abs(value - right.mean()) <= 1.96 * error
    assert np.mean(estimates) == pytest.approx(right.mean(), abs=0.015)
    assert np.mean(plain) < right.mean() - 0.03
    assert covered / 300 > 0.9


def test_guesses_are_named_in_order_and_only_for_the_label_set_they_belong_to() -> None:
    content = np.array([0.2, 0.5, 0.3], "<f2").tobytes()
    assert [label for label, _ in top_guesses(content, ("a", "b", "c"), 2)] == ["b", "c"]
    assert top_guesses(content, ("a", "b"), 2) == []
    assert top_guesses(b"", LABELS, 2) == []


def test_inclusion_probabilities_are_kept_and_the_first_queue_counts(tmp_path: Path) -> None:
    window = answers(60)
    first, second = choose(window, 20, seed=1), choose(window, 40, seed=2)
    pq.write_table(first, tmp_path / "b.parquet")
    os.utime(tmp_path / "b.parquet", (1, 1))
    pq.write_table(second, tmp_path / "a.parquet")
    kept = kept_inclusion(tmp_path)
    assert set(kept) == {*keys(first), *keys(second)}
    assert all(
        kept[key] == share for key, share in zip(keys(first), first["inclusion_probability"].to_pylist(), strict=True)
    )


def say(said: list[Feedback], label: str | None, source: str = "ann") -> bool:
    entry = opinion(said, "support", "r1", 0, label=label, source=source, now=NOW)
    said += [entry] if entry else []
    return entry is not None


def test_a_label_is_recorded_once_and_corrections_of_corrections_count() -> None:
    said: list[Feedback] = []
    assert [say(said, label) for label in ("card", "card", "cash", "card", None, None)] == [1, 0, 1, 1, 1, 0]
    assert say(said, "card", "bob")
    assert len({entry.feedback_id for entry in said}) == len(said) == 5
    assert [entry.at for entry in said[:4]] == sorted({entry.at for entry in said[:4]})


def session(record: list[tuple[str, str | None]], count: int = 3) -> Session:
    items = [Item(f"r{n}", 0, f"text {n}", (("card_lost", 0.6), ("cash_fee", 0.3))) for n in range(count)]
    labels = ["card_lost", "card_late", "cash_fee", "top_up"]
    return Session(items, labels, lambda item, label: record.append((item.request_id, label)))


def test_answers_by_number_prefix_part_or_full_name_are_recorded() -> None:
    record: list[tuple[str, str | None]] = []
    asked = session(record, 5)
    for given in ("2", "top", "FEE", "card_late", "+fresh_label"):
        asked.answer(given)
    assert record == [
        ("r0", "cash_fee"),
        ("r1", "top_up"),
        ("r2", "cash_fee"),
        ("r3", "card_late"),
        ("r4", "fresh_label"),
    ]
    assert asked.current is None
    assert asked.labelled == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("card", "may be: card_lost, card_late"),
        ("9", "no guess 9"),
        ("zzz", "no label matches"),
        ("", "number"),
        ("+", "+NAME"),
    ],
)
def test_an_unclear_answer_records_nothing_and_says_why(given: str, says: str) -> None:
    record: list[tuple[str, str | None]] = []
    asked = session(record)
    assert says in asked.answer(given)
    assert (record, asked.place) == ([], 0)


def test_skipping_records_nothing_and_undo_withdraws_the_last_label() -> None:
    record: list[tuple[str, str | None]] = []
    asked = session(record)
    assert asked.answer("u") == "there is nothing to undo"
    asked.answer("1")
    asked.answer("s")
    asked.answer("u")
    assert (asked.place, asked.labelled) == (1, 1)
    asked.answer("u")
    assert record == [("r0", "card_lost"), ("r0", None)]
    assert (asked.place, asked.labelled) == (0, 0)
