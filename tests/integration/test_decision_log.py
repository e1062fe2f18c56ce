"""Decisions are kept, decided once, and never changed."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from leitstand.errors import IntegrityError, PermanentBackendError
from leitstand.settings import Settings
from leitstand.types import Action, Decision, DriftReport, Metric
from leitstand.usecase import DriftSpec
from monitors.decision import LoopState, decide
from monitors.decision_log import DecisionLog, open_decision_log

START = datetime(2026, 11, 24, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    opened = DecisionLog(tmp_path / "decisions.db")
    yield opened
    opened.close()


def decision(hour: int, use_case: str = "support", action: Action = Action.WARN) -> Decision:
    return Decision(use_case=use_case, version=1, at=START + hour * HOUR, action=action, reasons=(f"hour {hour}",))


def lost(hour: int) -> DriftReport:
    return DriftReport(
        use_case="support", version=1, window_start=START + hour * HOUR, window_end=START + (hour + 1) * HOUR,
        rows=2000, reference_rows=3000, reference_digest="", scores=(), drifted=True, reference_accuracy=0.9,
        measured_accuracy=Metric(name="accuracy", value=0.5, examples=2000),
    )  # fmt: skip


def settle(path: Path, hour: int, start: threading.Barrier) -> tuple[Action, bool]:
    log, report, now = DecisionLog(path), lost(hour), START + 5 * HOUR
    start.wait()
    made, new = log.settle("support", lambda past: decide(report, past, DriftSpec(), LoopState(), now=now), now=now)
    log.close()
    return made.action, new


def test_what_was_settled_is_read_back_per_use_case(log: DecisionLog):
    for hour, use_case in enumerate(["support", "finance", "support"]):
        made = decision(hour, use_case)
        assert log.settle(use_case, lambda _, made=made: made, now=made.at) == (made, True)
    assert [d.reasons for d in log.recent("support")] == [("hour 0",), ("hour 2",)]
    assert [d.use_case for d in log.recent()] == ["support", "finance", "support"]
    assert [d.reasons for d in log.recent(limit=1)] == [("hour 2",)]


def test_history_reaches_two_weeks_back_and_a_known_decision_is_not_recorded_again(log: DecisionLog):
    for hour in (0, 24 * 20):
        log.settle("support", lambda _, hour=hour: decision(hour), now=START + hour * HOUR)
    shown: list[Sequence[Decision]] = []

    def known(past: Sequence[Decision]) -> Decision:
        shown.append(past)
        return past[-1]

    assert log.settle("support", known, now=START + 24 * 21 * HOUR) == (decision(24 * 20), False)
    assert [len(past) for past in shown] == [1] and len(log.recent("support")) == 2


@pytest.mark.parametrize("hours", [(0, 0, 0, 0), (0, 1, 2, 3)])
def test_judgements_at_the_same_moment_start_one_retraining(tmp_path: Path, hours: tuple[int, ...]):
    start = threading.Barrier(len(hours))
    with ThreadPoolExecutor(len(hours)) as pool:  # each with a connection of its own, as processes have
        outcomes = list(pool.map(lambda hour: settle(tmp_path / "decisions.db", hour, start), hours))
    assert outcomes.count((Action.RETRAIN, True)) == 1


def test_a_decision_that_fails_leaves_nothing_behind(log: DecisionLog):
    with pytest.raises(ZeroDivisionError):
        log.settle("support", lambda _: decision(1 // 0), now=START)
    assert log.recent() == []


@pytest.mark.parametrize("statement", ["UPDATE decisions SET use_case = 'x'", "DELETE FROM decisions"])
def test_the_file_refuses_changes(log: DecisionLog, tmp_path: Path, statement: str):
    log.settle("support", lambda _: decision(1), now=START)
    with sqlite3.connect(tmp_path / "decisions.db") as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    connection.close()


def test_a_damaged_or_unusable_file_is_named(tmp_path: Path):
    (tmp_path / "broken.db").write_bytes(b"no database, but long enough to be looked at " * 9)
    with pytest.raises(IntegrityError, match=r"broken\.db is damaged"):
        DecisionLog(tmp_path / "broken.db").recent()
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(PermanentBackendError, match=r"folder\.db cannot be used"):
        DecisionLog(tmp_path / "folder.db").recent()


def test_the_log_lies_below_home(tmp_path: Path):
    log = open_decision_log(Settings(home=tmp_path))
    assert log.recent() == []
    log.close()
    assert (tmp_path / "monitors" / "decisions.db").is_file()
