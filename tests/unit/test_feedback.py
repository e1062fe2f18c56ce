"""Corrections, votes and withdrawals of feedback."""

from datetime import timedelta

from governance.feedback_log import effective
from leitstand.types import Feedback
from tests.rows_for_tests import NOON, said

KEY = ("r0", 0)


def entry(number: int, label: str | None, source: str = "a", minute: int = 0, rating: int | None = None) -> Feedback:
    at = NOON + timedelta(minutes=minute)
    return said(0, label, feedback_id=f"f{number}", source=source, at=at, rating=rating)


def test_a_correction_of_a_correction_counts() -> None:
    said = [entry(1, "x", minute=1), entry(2, "y", minute=2), entry(3, "x", minute=3)]
    assert effective(said)[KEY].feedback_id == "f3"


def test_a_late_arrival_with_an_early_time_changes_nothing() -> None:
    assert effective([entry(2, "y", minute=2), entry(1, "x", minute=1)])[KEY].label == "y"


def test_the_majority_of_sources_wins_over_the_newest() -> None:
    votes = [entry(1, "x", "a", 1), entry(2, "x", "b", 2), entry(3, "y", "c", 3)]
    assert effective(votes)[KEY].label == "x"


def test_a_source_has_one_vote_however_often_it_speaks() -> None:
    votes = [entry(n, "x", "a", n) for n in range(5)] + [entry(8, "y", "b", 8), entry(9, "y", "c", 9)]
    assert effective(votes)[KEY].label == "y"


def test_the_newest_wins_a_tie() -> None:
    assert effective([entry(1, "x", "a", 5), entry(2, "y", "b", 4)])[KEY].label == "x"


def test_a_withdrawal_leaves_the_other_sources() -> None:
    votes = [entry(1, "x", "a", 1), entry(2, "y", "b", 2), entry(3, None, "b", 3)]
    assert effective(votes)[KEY].label == "x"
    assert KEY not in effective([*votes, entry(4, None, "a", 4)])


def test_a_rating_withdraws_no_label() -> None:
    assert effective([entry(1, "x", minute=1), entry(2, None, minute=2, rating=-1)])[KEY] == entry(
        1, "x", minute=1, rating=-1
    )


def test_ratings_alone_leave_the_label_open() -> None:
    found = effective([entry(1, None, rating=1, minute=1), entry(2, None, rating=-1, minute=2)])[KEY]
    assert (found.label, found.rating) == (None, -1)
